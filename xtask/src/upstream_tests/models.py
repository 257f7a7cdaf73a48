"""Write the folder that the local hub serves: small random models instead of the models that upstream's tests download.

Usage: models.py SOURCE HUB, where SOURCE is the pinned llama.cpp, which contains the vocabularies and the gguf package.

Repositories and files have the names that upstream's tests use. Shapes are small. Weights are random, from a fixed seed, so
every run and every machine gets the same files. Some tests expect words, so the models tell a story: see `tell`.
"""

import struct
import sys
import zlib
from pathlib import Path

import numpy

SOURCE = Path(sys.argv[1])
HUB = Path(sys.argv[2])
sys.path.insert(0, str(SOURCE / "gguf-py"))

import gguf  # noqa: E402  (the path to it is an argument)
from gguf import GGMLQuantizationType as Type  # noqa: E402

N_EMBD = 64
N_HEAD = 8
N_FF = 2048
N_LAYER = 3

# Pieces of words, the likeliest first. With them, the prompts of upstream's tests have as many tokens as with the original
# model. Simulated annealing selected them from the vocabulary of Llama.
PIECES = """
    er ▁a en on ▁th es ▁s an ▁the ▁w ▁p ou ed ▁o om ion ing as st ch am ot ut id ▁is ow est ▁y ve un end ▁you ver ab te ▁it ri us
    ▁con ▁H ▁F th od ▁W ▁G pt ▁com ant ▁en ▁do ci rom ▁i ap li com ell ▁ch ▁< con ok ud ps ▁me ▁ad ▁ab ll ec str ex ▁Wh yst ng
    ▁how me ep ey si na ute co ca po ▁cons ▁ver ari ▁si ui mod pi unt do ▁mean ha hat ▁prom ook ona iam hi Test lie cing pis ua
    Lo You how ris ▁ir
""".split()

# The words that tests of the smallest model expect, some of them within eight tokens.
STORY = """
    ▁Suddenly▁Whillicter ▁Aside ▁going▁bed ▁Whiskers ▁Jack
    ▁blue▁Suddenly▁Whillicter ▁everyone ▁going ▁small ▁park ▁day
"""


class Model:
    """One GGUF file. Its name contains the type of the weights, because upstream finds models by this type."""

    def __init__(self, path: str, arch: str, weight_type: Type, seed: int, shards: int = 1):
        self.path = HUB / path
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # The last shard contains the remaining tensors.
        per_shard = 0 if shards == 1 else -(-(3 + 9 * N_LAYER) // shards)
        self.writer = gguf.GGUFWriter(self.path, arch, split_max_tensors=per_shard)
        self.weight_type = weight_type
        self.random = numpy.random.default_rng(seed)

    def small_vocabulary(self, words: list[str]) -> int:
        """Bytes, `PIECES`, and words for answers only: pieces cannot form these words, so no prompt contains them."""
        kinds = gguf.TokenType
        tokens = [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)]
        tokens += [(f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256)]
        tokens += [(piece, kinds.NORMAL) for piece in ["▁", *PIECES, *words]]
        self.tokens = [token for token, _ in tokens]
        self.writer.add_tokenizer_model("llama")
        self.writer.add_token_list(self.tokens)
        self.writer.add_token_scores([-float(rank) for rank in range(len(tokens))])
        self.writer.add_token_types([kind for _, kind in tokens])
        self.writer.add_bos_token_id(1)
        self.writer.add_eos_token_id(2)
        self.writer.add_unk_token_id(0)
        self.writer.add_vocab_size(len(tokens))
        return len(tokens)

    def vocabulary(self, name: str) -> int:
        """Copies the tokenizer of one of upstream's vocabulary files, and returns its number of tokens."""
        reader = gguf.GGUFReader(SOURCE / "models" / f"ggml-vocab-{name}.gguf")
        for field in reader.fields.values():
            if field.name.startswith("tokenizer."):
                is_list = field.types[0] == gguf.GGUFValueType.ARRAY
                self.writer.add_key_value(
                    field.name, field.contents(), field.types[0], field.types[-1] if is_list else None
                )
        self.tokens = reader.fields[gguf.Keys.Tokenizer.LIST].contents()
        return len(self.tokens)

    def tell(self, story: list[str]) -> None:
        """The embeddings and the output layer of a model that repeats the story, whatever the prompt.

        After any token, all tokens of the story are likely. After a token of the story, its successor is the likeliest. So a
        temperature still changes the answer. The layers between change each number, so a wrong result of a layer changes the
        probabilities.
        """
        ids = [self.tokens.index(token) for token in story]
        shape = (len(self.tokens), N_EMBD)
        embeddings = self.random.standard_normal(shape, dtype=numpy.float32)
        output = self.random.standard_normal(shape, dtype=numpy.float32) * 0.05
        for token, successor in zip(ids, ids[1:] + ids[:1]):
            output[successor] += 0.8 * embeddings[token] / numpy.linalg.norm(embeddings[token])
        # The same value in all embeddings, so it raises the tokens of the story after any text.
        embeddings[:, 0] = 6
        output[:, 0] = 0
        output[ids, 0] = 3
        self.tensor("token_embd.weight", embeddings, self.weight_type)
        self.tensor("output.weight", output, self.weight_type)

    def weights(self, name: str, *shape: int, scale: float | None = None) -> None:
        """A matrix, or a stack of matrices, that keeps the size of its input."""
        values = self.random.standard_normal(shape, dtype=numpy.float32)
        values *= scale or shape[-1] ** -0.5
        self.tensor(name, values, self.weight_type)

    def ones(self, name: str, size: int) -> None:
        self.tensor(name, numpy.ones(size, dtype=numpy.float32), Type.F32)

    def zeros(self, name: str, size: int) -> None:
        self.tensor(name, numpy.zeros(size, dtype=numpy.float32), Type.F32)

    def tensor(self, name: str, values: numpy.ndarray, kind: Type) -> None:
        self.writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    def shape(self, context: int, experts: int = 0) -> None:
        self.writer.add_context_length(context)
        self.writer.add_embedding_length(N_EMBD)
        self.writer.add_block_count(N_LAYER)
        self.writer.add_feed_forward_length(N_FF)
        self.writer.add_head_count(N_HEAD)
        if experts:
            self.writer.add_expert_count(experts)
            self.writer.add_expert_used_count(2)

    def finish(self) -> None:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


def attention(model: Model, block: str) -> None:
    """Half as many heads for keys and values as for queries."""
    model.weights(f"{block}.attn_q.weight", N_EMBD, N_EMBD)
    model.weights(f"{block}.attn_k.weight", N_EMBD // 2, N_EMBD)
    model.weights(f"{block}.attn_v.weight", N_EMBD // 2, N_EMBD)
    model.weights(f"{block}.attn_output.weight", N_EMBD, N_EMBD)


def feed_forward(model: Model, block: str) -> None:
    model.weights(f"{block}.ffn_gate.weight", N_FF, N_EMBD)
    model.weights(f"{block}.ffn_up.weight", N_FF, N_EMBD)
    model.weights(f"{block}.ffn_down.weight", N_EMBD, N_FF)


def llama(
    path: str,
    weight_type: Type,
    seed: int,
    experts: int = 0,
    infill: bool = False,
    shards: int = 1,
    story: str = STORY,
    vocabulary: str = "",
) -> None:
    model = Model(path, "llama", weight_type, seed, shards)
    if vocabulary:
        model.vocabulary(vocabulary)
    else:
        model.small_vocabulary(story.split())
    model.shape(2048, experts)
    model.writer.add_head_count_kv(N_HEAD // 2)
    model.writer.add_layer_norm_rms_eps(1e-5)
    model.writer.add_rope_dimension_count(N_EMBD // N_HEAD)
    if infill:
        # Any tokens work, because the server does not read their names.
        for name, token in (("prefix", 100), ("suffix", 101), ("middle", 102)):
            model.writer.add_uint32(f"tokenizer.ggml.fim_{name[:3]}_token_id", token)
    model.tell(story.split())
    for layer in range(N_LAYER):
        block = f"blk.{layer}"
        model.ones(f"{block}.attn_norm.weight", N_EMBD)
        attention(model, block)
        model.ones(f"{block}.ffn_norm.weight", N_EMBD)
        if experts:
            model.tensor(
                f"{block}.ffn_gate_inp.weight",
                model.random.standard_normal((experts, N_EMBD), dtype=numpy.float32),
                Type.F32,
            )
            model.weights(f"{block}.ffn_gate_exps.weight", experts, N_FF, N_EMBD)
            model.weights(f"{block}.ffn_up_exps.weight", experts, N_FF, N_EMBD)
            model.weights(f"{block}.ffn_down_exps.weight", experts, N_EMBD, N_FF)
        else:
            feed_forward(model, block)
    model.ones("output_norm.weight", N_EMBD)
    model.finish()


def lora(path: str, seed: int) -> None:
    """An adapter for the mixture of experts."""
    rank = 4
    model = Model(path, "llama", Type.F32, seed)
    model.writer.add_type(gguf.GGUFType.ADAPTER)
    model.writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    model.writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 8.0)
    for layer in range(N_LAYER):
        for part in ("attn_q", "attn_output"):
            model.weights(f"blk.{layer}.{part}.weight.lora_a", rank, N_EMBD)
            model.weights(f"blk.{layer}.{part}.weight.lora_b", N_EMBD, rank)
    model.finish()


def bert(path: str, weight_type: Type, seed: int, reranker: bool = False) -> None:
    context = 512
    model = Model(path, "bert", weight_type, seed)
    n_vocab = model.vocabulary("bert-bge")
    model.shape(context)
    model.writer.add_layer_norm_eps(1e-12)
    model.writer.add_causal_attention(False)
    if gguf.Keys.Tokenizer.TOKEN_TYPE_COUNT not in model.writer.kv_data[0]:
        model.writer.add_token_type_count(2)
    model.writer.add_pooling_type(gguf.PoolingType.RANK if reranker else gguf.PoolingType.CLS)
    model.weights("token_embd.weight", n_vocab, N_EMBD, scale=1.0)
    model.tensor(
        "position_embd.weight",
        model.random.standard_normal((context, N_EMBD), dtype=numpy.float32) * 0.1,
        Type.F32,
    )
    model.tensor("token_types.weight", numpy.zeros((2, N_EMBD), dtype=numpy.float32), Type.F32)

    def norm(name: str) -> None:
        model.ones(f"{name}.weight", N_EMBD)
        model.zeros(f"{name}.bias", N_EMBD)

    norm("token_embd_norm")
    for layer in range(N_LAYER):
        block = f"blk.{layer}"
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            model.weights(f"{block}.{part}.weight", N_EMBD, N_EMBD)
            model.zeros(f"{block}.{part}.bias", N_EMBD)
        norm(f"{block}.attn_output_norm")
        model.weights(f"{block}.ffn_up.weight", N_FF, N_EMBD)
        model.zeros(f"{block}.ffn_up.bias", N_FF)
        model.weights(f"{block}.ffn_down.weight", N_EMBD, N_FF)
        model.zeros(f"{block}.ffn_down.bias", N_EMBD)
        norm(f"{block}.layer_output_norm")
    if reranker:
        model.weights("cls.weight", N_EMBD, N_EMBD)
        model.zeros("cls.bias", N_EMBD)
        model.weights("cls.output.weight", 1, N_EMBD)
        model.zeros("cls.output.bias", 1)
    model.finish()


def gemma3(path: str, weight_type: Type, seed: int, story: str) -> None:
    model = Model(path, "gemma3", weight_type, seed)
    model.vocabulary("llama-spm")
    model.writer.add_add_space_prefix(False)
    model.shape(2048)
    head = N_EMBD // N_HEAD
    model.writer.add_head_count_kv(N_HEAD // 2)
    model.writer.add_key_length(head)
    model.writer.add_value_length(head)
    model.writer.add_layer_norm_rms_eps(1e-6)
    model.tell(story.split())
    for layer in range(N_LAYER):
        block = f"blk.{layer}"
        for norm in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            model.ones(f"{block}.{norm}.weight", N_EMBD)
        for norm in ("attn_q_norm", "attn_k_norm"):
            model.ones(f"{block}.{norm}.weight", head)
        attention(model, block)
        feed_forward(model, block)
    model.ones("output_norm.weight", N_EMBD)
    model.finish()


def projector(path: str, seed: int) -> None:
    """The vision encoder of `gemma3`: an image becomes 64 tokens."""
    image, patch = 32, 4
    model = Model(path, "clip", Type.F32, seed)
    model.writer.add_type(gguf.GGUFType.MMPROJ)
    model.writer.add_clip_has_vision_encoder(True)
    model.writer.add_clip_projector_type("gemma3")
    model.writer.add_vision_image_size(image)
    model.writer.add_vision_patch_size(patch)
    model.writer.add_vision_embedding_length(N_EMBD)
    model.writer.add_vision_feed_forward_length(N_FF)
    model.writer.add_vision_block_count(N_LAYER)
    model.writer.add_vision_head_count(N_HEAD)
    model.writer.add_vision_projection_dim(N_EMBD)
    model.writer.add_vision_projector_scale_factor(1)
    model.writer.add_vision_attention_layernorm_eps(1e-6)
    model.writer.add_vision_image_mean([0.5, 0.5, 0.5])
    model.writer.add_vision_image_std([0.5, 0.5, 0.5])
    model.writer.add_vision_use_gelu(True)
    model.weights("v.patch_embd.weight", N_EMBD, 3, patch, patch)
    model.zeros("v.patch_embd.bias", N_EMBD)
    model.weights("v.position_embd.weight", (image // patch) ** 2, N_EMBD)
    for layer in range(N_LAYER):
        block = f"v.blk.{layer}"
        for norm in ("ln1", "ln2"):
            model.ones(f"{block}.{norm}.weight", N_EMBD)
            model.zeros(f"{block}.{norm}.bias", N_EMBD)
        for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
            model.weights(f"{block}.{part}.weight", N_EMBD, N_EMBD)
            model.zeros(f"{block}.{part}.bias", N_EMBD)
        model.weights(f"{block}.ffn_up.weight", N_FF, N_EMBD)
        model.zeros(f"{block}.ffn_up.bias", N_FF)
        model.weights(f"{block}.ffn_down.weight", N_EMBD, N_FF)
        model.zeros(f"{block}.ffn_down.bias", N_EMBD)
    model.ones("v.post_ln.weight", N_EMBD)
    model.zeros("v.post_ln.bias", N_EMBD)
    model.weights("mm.input_projection.weight", N_EMBD, N_EMBD)
    model.ones("mm.soft_emb_norm.weight", N_EMBD)
    model.finish()


def picture(path: str, seed: int) -> None:
    """A PNG of 32 by 32 random dots."""
    side = 32
    dots = numpy.random.default_rng(seed).integers(0, 256, (side, side * 3), dtype=numpy.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in dots)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    png += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (HUB / path).parent.mkdir(parents=True, exist_ok=True)
    (HUB / path).write_bytes(png)


def preset(path: str) -> None:
    (HUB / path).parent.mkdir(parents=True, exist_ok=True)
    (HUB / path).write_text(
        "[tinygemma3-preset]\nhf-repo = ggml-org/tinygemma3-GGUF:Q8_0\n\n"
        "[stories260K-test]\nhf-repo = ggml-org/test-model-stories260K\n"
    )


def main() -> None:
    llama("ggml-org/test-model-stories260K/stories260K-F32.gguf", Type.F32, 1)
    llama("ggml-org/models/tinyllamas/stories260K.gguf", Type.F32, 1)
    llama("ggml-org/test-model-stories260K-infill/stories260K-infill-F32.gguf", Type.F32, 2, infill=True)
    llama("ggml-org/test-model-router-download/stories260K-F16.gguf", Type.F16, 3)

    # Both for the adapter and for the draft model, and without them.
    story = "▁little ▁girl ▁day ▁special ▁thing ▁far ▁home ▁love ▁glass ▁answer"
    spm = "llama-spm"
    llama("ggml-org/models/tinyllamas/split/stories15M-q8_0.gguf", Type.Q8_0, 4, shards=3, story=story, vocabulary=spm)
    llama("ggml-org/stories15M_MOE/stories15M_MOE-F16.gguf", Type.F16, 5, experts=4, story=story, vocabulary=spm)
    lora("ggml-org/stories15M_MOE/moe_shakespeare15M.gguf", 6)
    llama("ggml-org/tiny-llamas/stories15M-q4_0.gguf", Type.Q4_0, 7, story=story, vocabulary=spm)

    bert("ggml-org/models/bert-bge-small/ggml-model-f16.gguf", Type.F16, 8)
    bert("ggml-org/models/jina-reranker-v1-tiny-en/ggml-model-f16.gguf", Type.F16, 9, reranker=True)
    gemma3("ggml-org/tinygemma3-GGUF/tinygemma3-Q8_0.gguf", Type.Q8_0, 10, story="▁cat ▁fro g")
    projector("ggml-org/tinygemma3-GGUF/mmproj-tinygemma3.gguf", 11)
    picture("ggml-org/tinygemma3-GGUF/test/11_truck.png", 12)
    picture("ggml-org/tinygemma3-GGUF/test/91_cat.png", 13)
    preset("ggml-org/test-preset-ci/preset.ini")


main()
