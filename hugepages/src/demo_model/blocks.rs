//! Random weights, generated directly in their storage format.
//!
//! A quantised block consists of random bits; its scale gives the weights a mean of zero and the requested standard deviation. No weight
//! passes through `f32`, which makes a gigabyte a second possible. A stream gives the same bytes on any machine, because it uses integers
//! from a fixed generator, and only operations that IEEE 754 defines to the last bit (no `ln`, no `sin`).
//!
//! A stream gives whole blocks. The size of a request does not change its bytes.

use rand_xoshiro::{
    Xoshiro256PlusPlus,
    rand_core::{Rng, SeedableRng},
};

use llama_hugepages::gguf::TensorType;

/// Number of evenly spaced values of a float weight.
const VALUES: usize = 4096;
/// Number of values of the scale of a quantised block: enough to make equal blocks rare.
const SCALES: usize = 16;

/// The random stream of one tensor's bytes.
pub(super) struct Stream {
    random: Xoshiro256PlusPlus,
    form: Form,
}

/// The storage format, with precomputed values for the requested scale.
enum Form {
    F32(Box<[f32; VALUES]>),
    /// F16 and BF16.
    Half(Box<[u16; VALUES]>),
    Q8_0([[u8; 2]; SCALES]),
    Q4_0([[u8; 2]; SCALES]),
    /// Scale and minimum.
    Q4K([[u8; 4]; SCALES]),
    Q6K([[u8; 2]; SCALES]),
}

impl Stream {
    /// The stream of the tensor `name`, which depends only on the arguments. `None` for a type without a generator.
    pub(super) fn new(seed: u64, name: &str, ty: TensorType, mean: f32, std: f32) -> Option<Self> {
        let form = match ty {
            TensorType::F32 => Form::F32(values(mean, std)),
            TensorType::F16 => Form::Half(Box::new(values(mean, std).map(f32_to_f16))),
            TensorType::BF16 => Form::Half(Box::new(values(mean, std).map(f32_to_bf16))),
            // Below, a weight is scale × a random integer; the divisor is that integer's root mean square.
            TensorType::Q8_0 => Form::Q8_0(scales(std / 73.9).map(|d| f32_to_f16(d).to_le_bytes())),
            TensorType::Q4_0 => {
                Form::Q4_0(scales(std / 4.637).map(|d| f32_to_f16(d).to_le_bytes()))
            }
            TensorType::Q4_K => Form::Q4K(scales(std / (4.61 * 48.37)).map(|d| {
                let ([d0, d1], [m0, m1]) = (
                    f32_to_f16(d).to_le_bytes(),
                    f32_to_f16(d * 7.5).to_le_bytes(),
                );
                [d0, d1, m0, m1]
            })),
            TensorType::Q6_K => {
                Form::Q6K(scales(std / (18.48 * 48.37)).map(|d| f32_to_f16(d).to_le_bytes()))
            }
            _ => return None,
        };
        Some(Self {
            random: Xoshiro256PlusPlus::seed_from_u64(hash(seed, name)),
            form,
        })
    }

    /// The next `out.len()` bytes, a whole number of blocks.
    pub(super) fn fill(&mut self, out: &mut [u8]) {
        let random = &mut self.random;
        match &self.form {
            Form::F32(values) => {
                for pair in out.chunks_mut(8) {
                    let bits = random.next_u64();
                    for (i, out) in pair.chunks_exact_mut(4).enumerate() {
                        out.copy_from_slice(
                            &values[(bits >> (32 * i)) as usize % VALUES].to_le_bytes(),
                        );
                    }
                }
            }
            Form::Half(values) => {
                for four in out.chunks_mut(8) {
                    let bits = random.next_u64();
                    for (i, out) in four.chunks_exact_mut(2).enumerate() {
                        out.copy_from_slice(
                            &values[(bits >> (16 * i)) as usize % VALUES].to_le_bytes(),
                        );
                    }
                }
            }
            Form::Q8_0(scales) => {
                for block in out.as_chunks_mut::<34>().0 {
                    let (d, quants) = block.split_at_mut(2);
                    d.copy_from_slice(&scales[random.next_u64() as usize % SCALES]);
                    fill_bits(random, quants);
                    // Quantising never gives -128, and kernels may rely on this.
                    for q in quants {
                        *q = q.cast_signed().max(-127).cast_unsigned();
                    }
                }
            }
            Form::Q4_0(scales) => {
                for block in out.as_chunks_mut::<18>().0 {
                    let (d, quants) = block.split_at_mut(2);
                    let bits = random.next_u64();
                    d.copy_from_slice(&scales[bits as usize % SCALES]);
                    // Four random bits minus eight have a mean of -0.5; a random sign removes it.
                    d[1] |= (bits >> 63 << 7) as u8;
                    fill_bits(random, quants);
                }
            }
            Form::Q4K(scales) => {
                for block in out.as_chunks_mut::<144>().0 {
                    let (head, quants) = block.split_at_mut(16);
                    let bits = random.next_u64();
                    head[..4].copy_from_slice(&scales[bits as usize % SCALES]);
                    head[4..].copy_from_slice(&pack_scales(bits >> 4));
                    fill_bits(random, quants);
                }
            }
            Form::Q6K(scales) => {
                for block in out.as_chunks_mut::<210>().0 {
                    let (quants, tail) = block.split_at_mut(192);
                    fill_bits(random, quants);
                    let (sub_scales, d) = tail.split_at_mut(16);
                    fill_bits(random, sub_scales);
                    // 32 to 63 with a random sign, because six random bits minus 32 have a mean of -0.5.
                    for s in sub_scales {
                        let magnitude = (*s & 31 | 32).cast_signed();
                        *s = if *s & 128 == 0 { magnitude } else { -magnitude }.cast_unsigned();
                    }
                    d.copy_from_slice(&scales[random.next_u64() as usize % SCALES]);
                }
            }
        }
    }
}

/// Random bits; every length here is a multiple of eight.
fn fill_bits(random: &mut Xoshiro256PlusPlus, out: &mut [u8]) {
    for eight in out.as_chunks_mut::<8>().0 {
        *eight = random.next_u64().to_le_bytes();
    }
}

/// The twelve bytes of `block_q4_K::scales` for eight scales of 32 to 63, from 40 random bits.
///
/// Each minimum equals its scale: with `dmin = 7.5 d` the sixteen levels are evenly spaced around zero.
///
/// ```text
/// byte 0..4   ss000000  scale j,   above it two bits of scale j+4
/// byte 4..8   mm000000  minimum j, above it two bits of minimum j+4
/// byte 8..12  mmmmssss  four bits of scale j+4 and of minimum j+4
/// ```
fn pack_scales(bits: u64) -> [u8; 12] {
    let mut packed = [0; 12];
    for j in 0..4 {
        let low = (bits >> (5 * j)) as u8 & 31 | 32;
        let high = (bits >> (5 * j + 20)) as u8 & 31 | 32;
        packed[j] = low | (high >> 4) << 6;
        packed[j + 4] = packed[j];
        packed[j + 8] = (high & 15) * 0x11;
    }
    packed
}

/// Evenly spaced, symmetric around `mean`, with the standard deviation `std`.
fn values(mean: f32, std: f32) -> Box<[f32; VALUES]> {
    let half_width = std * 3f32.sqrt();
    let step = 2.0 / VALUES as f32;
    Box::new(std::array::from_fn(|i| {
        mean + half_width * ((i as f32 + 0.5) * step - 1.0)
    }))
}

/// From 0.75 to 1.22 times `scale`, `scale` in the root mean square.
fn scales(scale: f32) -> [f32; SCALES] {
    let factors: [f32; SCALES] = std::array::from_fn(|i| 0.75 + i as f32 / 32.0);
    let rms = (factors.iter().map(|f| f * f).sum::<f32>() / SCALES as f32).sqrt();
    factors.map(|factor| factor * scale / rms)
}

/// FNV-1a over the seed and the name. It suffices, because the generator mixes its seed.
fn hash(seed: u64, name: &str) -> u64 {
    seed.to_le_bytes()
        .into_iter()
        .chain(name.bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
}

/// Rounds to the nearest value, ties to even. Input: finite values far below the maximum of f16; the smallest may become subnormal.
fn f32_to_f16(value: f32) -> u16 {
    let sign = (value.to_bits() >> 16) as u16 & 0x8000;
    let magnitude = value.abs();
    // Adding 2^(e+13) leaves only the bits that an f16 of exponent e keeps, and the addition rounds according to IEEE 754.
    let exponent = (magnitude.to_bits() >> 23).max(127 - 14);
    let shift = f32::from_bits((exponent + 13) << 23);
    let mantissa = (magnitude + shift).to_bits() - shift.to_bits();
    // If a mantissa rounds up to the next power of two, it carries into the exponent, which is correct.
    sign | (((exponent - (127 - 14)) << 10) + mantissa) as u16
}

/// Rounds to the nearest value, ties to even.
fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use llama_hugepages::ffi;

    const TYPES: [(TensorType, ffi::ggml_type); 7] = [
        (TensorType::F32, ffi::GGML_TYPE_F32),
        (TensorType::F16, ffi::GGML_TYPE_F16),
        (TensorType::BF16, ffi::GGML_TYPE_BF16),
        (TensorType::Q8_0, ffi::GGML_TYPE_Q8_0),
        (TensorType::Q4_0, ffi::GGML_TYPE_Q4_0),
        (TensorType::Q4_K, ffi::GGML_TYPE_Q4_K),
        (TensorType::Q6_K, ffi::GGML_TYPE_Q6_K),
    ];

    fn bytes(ty: TensorType, std: f32, elements: u64) -> Vec<u8> {
        let mut out = vec![0; (elements / ty.block_len() * ty.block_bytes()) as usize];
        Stream::new(7, "blk.0.ffn_up.weight", ty, 0.0, std)
            .unwrap()
            .fill(&mut out);
        out
    }

    /// Dequantises the bytes with ggml's own code.
    fn dequantised(id: ffi::ggml_type, data: &[u8], elements: usize) -> Vec<f32> {
        if id == ffi::GGML_TYPE_F32 {
            return data
                .as_chunks::<4>()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect();
        }
        let mut out = vec![f32::NAN; elements];
        // SAFETY: ggml has traits for each of its types, in a static table.
        let traits = unsafe { ffi::ggml_get_type_traits(id) };
        // SAFETY: as above, so the pointer is valid for ever.
        let to_float = unsafe { (*traits).to_float }.unwrap();
        let count = elements.try_into().unwrap();
        // SAFETY: `data` holds `elements` elements of this type in whole blocks, `out` has room for as many.
        unsafe { to_float(data.as_ptr().cast(), out.as_mut_ptr(), count) };
        out
    }

    #[test]
    fn weights_have_the_mean_and_spread_asked_for() {
        const N: usize = 1 << 20;
        for (ty, id) in TYPES {
            // The spread of a narrow and of a very wide model.
            for std in [1.0 / 8.0, 1.0 / 128.0] {
                let weights = dequantised(id, &bytes(ty, std, N as u64), N);
                assert!(weights.iter().all(|w| w.is_finite()), "{ty}");
                let mean = weights.iter().map(|&w| f64::from(w)).sum::<f64>() / N as f64;
                let spread = (weights
                    .iter()
                    .map(|&w| f64::from(w) * f64::from(w))
                    .sum::<f64>()
                    / N as f64)
                    .sqrt();
                assert!(
                    mean.abs() < 0.01 * f64::from(std),
                    "{ty}: mean {mean} at spread {std}"
                );
                assert!(
                    (spread / f64::from(std) - 1.0).abs() < 0.02,
                    "{ty}: spread {spread} instead of {std}"
                );
                let distinct = weights
                    .iter()
                    .map(|w| w.to_bits())
                    .collect::<std::collections::BTreeSet<_>>()
                    .len();
                assert!(distinct > 200, "{ty}: only {distinct} different weights");
            }
        }
    }

    #[test]
    fn ggml_finds_nothing_wrong_with_the_rows() {
        for (ty, id) in TYPES {
            let data = bytes(ty, 0.02, 1 << 16);
            // SAFETY: reads `data.len()` bytes of whole blocks.
            let valid =
                unsafe { ffi::ggml_validate_row_data(id, data.as_ptr().cast(), data.len()) };
            assert!(valid, "{ty}");
        }
    }

    #[test]
    fn portions_make_no_difference() {
        for (ty, _) in TYPES {
            let whole = bytes(ty, 0.02, 1 << 14);
            let mut stream = Stream::new(7, "blk.0.ffn_up.weight", ty, 0.0, 0.02).unwrap();
            let mut parts = vec![0; whole.len()];
            // 8 blocks, so that no part ends inside the floats of one random number.
            parts
                .chunks_mut(8 * ty.block_bytes() as usize)
                .for_each(|part| stream.fill(part));
            assert!(parts == whole, "{ty}");
        }
    }

    #[test]
    fn another_name_or_seed_is_another_stream() {
        let first = |seed, name| {
            let mut out = [0; 34];
            Stream::new(seed, name, TensorType::Q8_0, 0.0, 0.02)
                .unwrap()
                .fill(&mut out);
            out
        };
        assert_eq!(first(0, "a"), first(0, "a"));
        assert_ne!(first(0, "a"), first(0, "b"));
        assert_ne!(first(0, "a"), first(1, "a"));
    }

    #[test]
    fn halves_round_as_ggml_rounds_them() {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(1);
        for _ in 0..100_000 {
            // From 2^-27 (below half the smallest subnormal) to 2^5.
            let bits = random.next_u64();
            let value = f32::from_bits(
                (bits as u32 & 0x807f_ffff) | (100 + (bits >> 40) as u32 % 32) << 23,
            );
            // SAFETY: a number in, a number out.
            let expected = unsafe { ffi::ggml_fp32_to_fp16(value) };
            assert_eq!(f32_to_f16(value), expected, "{value:e}");
        }
        assert_eq!(f32_to_f16(0.0), 0);
    }

    /// Guards against a loss of speed by a factor of ten.
    #[test]
    #[cfg_attr(debug_assertions, ignore = "only meaningful with optimisation")]
    fn a_gigabyte_takes_about_a_second() {
        const RUNS: usize = 8;
        const PORTIONS: usize = 32;
        let mut out = vec![0; 1 << 20];
        for (ty, _) in TYPES {
            let portion = out.len() / ty.block_bytes() as usize * ty.block_bytes() as usize;
            let mut stream = Stream::new(0, "x", ty, 0.0, 0.02).unwrap();
            let times = (0..RUNS).map(|_| {
                let start = Instant::now();
                for _ in 0..PORTIONS {
                    stream.fill(&mut out[..portion]);
                }
                start.elapsed().as_secs_f64()
            });
            // The best time, because other load on the machine slows the other runs.
            let best = times.fold(f64::INFINITY, f64::min);
            let rate = (PORTIONS * portion) as f64 / best / 1e9;
            println!("{ty}: {rate:.2} GB/s");
            assert!(rate > 0.1, "{ty}: {rate:.2} GB/s");
        }
    }
}
