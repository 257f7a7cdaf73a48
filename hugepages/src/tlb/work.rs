//! The timed loops. No loop allocates, and each returns its result through `black_box`, so that the compiler cannot remove
//! the reads.

use std::hint::black_box;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use super::Stopped;
use super::stop::go_on;

/// Words of one cell: a cache line, or a half of one on CPUs with lines of 128 bytes.
pub const CELL: usize = 8;

/// Number of reads between two checks for a cancel: less than a millisecond for sequential reads, and some milliseconds for random reads.
const WORDS_AT_ONCE: usize = 1 << 20;
const READS_AT_ONCE: u64 = 1 << 14;

/// Reads all words in order, `passes` times.
pub fn sequential(words: &[u64], passes: u32, stop: &AtomicBool) -> Result<Duration, Stopped> {
    let start = Instant::now();
    for _ in 0..passes {
        for chunk in words.chunks(WORDS_AT_ONCE) {
            go_on(stop)?;
            black_box(chunk.iter().fold(0u64, |sum, word| sum.wrapping_add(*word)));
        }
    }
    Ok(start.elapsed())
}

/// Reads random words; no read depends on the last.
pub fn random(
    words: &[u64],
    reads: u64,
    seed: u64,
    stop: &AtomicBool,
) -> Result<Duration, Stopped> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let start = Instant::now();
    in_portions(reads, stop, |portion| {
        let mut sum = 0u64;
        for _ in 0..portion {
            sum = sum.wrapping_add(words[below(&mut rng, words.len())]);
        }
        black_box(sum);
    })?;
    Ok(start.elapsed())
}

/// Links all cells to one random cycle: the first word of each cell is the index of the next cell.
///
/// Uses Sattolo's shuffle in place, because a second array would fill the TLB and the memory.
pub fn link(words: &mut [u64], seed: u64, stop: &AtomicBool) -> Result<(), Stopped> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let cells = words.len() / CELL;
    for (cell, words) in words.chunks_exact_mut(CELL).enumerate() {
        if (cell as u64).is_multiple_of(READS_AT_ONCE) {
            go_on(stop)?;
        }
        words[0] = (cell * CELL) as u64;
    }
    for cell in (1..cells).rev() {
        if (cell as u64).is_multiple_of(READS_AT_ONCE) {
            go_on(stop)?;
        }
        words.swap(cell * CELL, below(&mut rng, cell) * CELL);
    }
    Ok(())
}

/// Follows the cycle: each read depends on the last.
pub fn dependent(words: &[u64], reads: u64, stop: &AtomicBool) -> Result<Duration, Stopped> {
    let mut at = 0;
    let start = Instant::now();
    in_portions(reads, stop, |portion| {
        for _ in 0..portion {
            at = words[at] as usize;
        }
        black_box(at);
    })?;
    Ok(start.elapsed())
}

fn in_portions(reads: u64, stop: &AtomicBool, mut work: impl FnMut(u64)) -> Result<(), Stopped> {
    let mut left = reads;
    while left > 0 {
        go_on(stop)?;
        let portion = left.min(READS_AT_ONCE);
        work(portion);
        left -= portion;
    }
    Ok(())
}

/// A random number below `end`: the high half of a product. It needs no division, and its bias is too small to measure.
fn below(rng: &mut Xoshiro256PlusPlus, end: usize) -> usize {
    ((u128::from(rng.next_u64()) * end as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    static GOES_ON: AtomicBool = AtomicBool::new(false);

    fn visits(words: &[u64]) -> Vec<u32> {
        let cells = words.len() / CELL;
        let mut visits = vec![0; cells];
        let mut at = 0;
        for _ in 0..cells {
            at = words[at] as usize;
            visits[at / CELL] += 1;
        }
        assert_eq!(at, 0, "the way ends where it began");
        visits
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_cycle_visits_each_cell_exactly_once(cells in 1usize..5000, seed: u64, rest in 0..CELL) {
            let mut words = vec![0; cells * CELL + rest];
            link(&mut words, seed, &GOES_ON).unwrap();
            prop_assert!(visits(&words).iter().all(|visits| *visits == 1));
        }
    }

    #[test]
    fn a_cycle_of_many_portions_visits_each_cell_exactly_once() {
        let mut words = vec![0; 3 * WORDS_AT_ONCE + 5 * CELL];
        link(&mut words, 1, &GOES_ON).unwrap();
        assert!(visits(&words).iter().all(|visits| *visits == 1));
    }

    #[test]
    fn another_seed_is_another_cycle() {
        let made = |seed| {
            let mut words = vec![0; 1000 * CELL];
            link(&mut words, seed, &GOES_ON).unwrap();
            words
        };
        assert_eq!(made(1), made(1));
        assert_ne!(made(1), made(2));
    }

    #[test]
    fn random_indexes_reach_both_ends_and_no_further() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(0);
        let mut seen = [0u32; 7];
        for _ in 0..7000 {
            seen[below(&mut rng, 7)] += 1;
        }
        assert!(
            seen.iter().all(|count| (800..1200).contains(count)),
            "{seen:?}"
        );
    }

    #[test]
    fn every_loop_ends_when_asked_to() {
        let stop = AtomicBool::new(true);
        let mut words = vec![0; 1 << 20];
        assert!(sequential(&words, 1, &stop).is_err());
        assert!(random(&words, 1, 0, &stop).is_err());
        assert!(dependent(&words, 1, &stop).is_err());
        assert!(link(&mut words, 0, &stop).is_err());
    }
}
