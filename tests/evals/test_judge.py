"""Judges: exact figures on models whose probabilities are known, windows, end tokens, what they refuse."""

import dataclasses
import math
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dimba_jax.config import from_config_dict
from dimba_jax.data.tokenizers import UNK, ByteTokenizer
from dimba_jax.diffusion import make_process
from dimba_jax.evals.judge import HFJudge, JudgeError, OwnJudge, load_judge
from dimba_jax.evals.mauve import MauveError, load_mauve
from dimba_jax.models.build import make_denoiser
from dimba_jax.sampling.load import LoadedModel

TINY = {"d_model": 16, "layers": 1, "mlp_ratio": 0.0, "head_dim": 8, "state_dim": 4, "chunk": 4}
LANGUAGE = {"source": "text", "source_length": 0, "target_length": 8, "normalize": "lower"}


def make_model(kind="autoregressive", *, data=LANGUAGE, head=True):
    autoregressive = {"direction": "causal", "pattern": ("attention",)} if kind == "autoregressive" else {}
    config = from_config_dict(
        {
            "name": "tiny",
            "data": data,
            "tokenizer": {"kind": "bytes"},
            "model": TINY | {"self_conditioning": False, "head": "untied"} | autoregressive,
            "process": {"kind": kind, "schedule": "log_linear"},
            "sampling": {"sampler": "ancestral"},
        }
    )
    tokenizer = ByteTokenizer()
    denoiser = make_denoiser(config, tokenizer.vocab_size, nnx.Rngs(0))
    if not head:
        denoiser.head.kernel[...] = jnp.zeros_like(denoiser.head.kernel[...])
    return LoadedModel(denoiser, make_process(config.process, tokenizer.vocab_size), tokenizer, config, 0)


def test_uniform_judge_has_the_perplexity_of_its_vocabulary():
    nats, tokens = OwnJudge(make_model(head=False), batch_size=2).nll(["abc", "defghij", "k"])
    assert tokens == 11
    assert math.exp(nats / tokens) == pytest.approx(259, rel=1e-5)


def test_judge_with_known_probabilities():
    """A model that knows letter frequencies alone: nats are minus the sum of their logarithms, text for text."""
    model = make_model(head=False)
    bias = np.random.default_rng(0).normal(size=259).astype(np.float32)
    model.denoiser.head.bias[...] = jnp.asarray(bias)
    logp = bias - np.log(np.exp(bias.astype(np.float64)).sum())
    texts = ["Hello", "a text of three windows", ""]  # the judge's data is lower-case
    expected = -sum(logp[3 + byte] for text in texts for byte in text.lower().encode())
    nats, tokens = OwnJudge(model, batch_size=2).nll(texts)
    assert tokens == 5 + 23
    assert nats == pytest.approx(expected, rel=1e-5)


def test_nothing_behind_a_text_counts_or_is_seen():
    """A text costs the same alone, beside longer ones, and in a longer batch; its order is what costs."""
    judge = OwnJudge(make_model(), batch_size=3)
    texts = ["ab", "cdefg", "hijklmno"]
    alone = [judge.nll([text])[0] for text in texts]
    assert judge.nll(texts)[0] == pytest.approx(sum(alone), rel=1e-5)
    assert abs(judge.nll(["ba"])[0] - alone[0]) > 1e-3
    # two windows, each afresh
    assert judge.nll(["hijklmnoab"])[0] == pytest.approx(alone[2] + alone[0], rel=1e-5)


def test_text_that_a_judge_cannot_spell_is_announced(capsys):
    class Letters(ByteTokenizer):
        def encode_batch(self, texts):
            return [[3 + byte if byte < 128 else UNK for byte in text.encode()] for text in texts]

    judge = OwnJudge(dataclasses.replace(make_model(head=False), tokenizer=Letters()), batch_size=1)
    assert judge.nll(["naïve"])[1] == 6
    assert "judge tiny: 2 of 6 tokens are unknown to its tokenizer" in capsys.readouterr().err
    judge.nll(["naive"])
    assert "unknown" not in capsys.readouterr().err


def test_own_judge_refuses_what_has_no_exact_likelihood():
    with pytest.raises(JudgeError, match="process.kind='masked', whose likelihood is only bounded"):
        OwnJudge(make_model("masked"))
    model = make_model()
    pairs = dataclasses.replace(model.config, data=dataclasses.replace(model.config.data, source_length=4))
    with pytest.raises(JudgeError, match="the judge elsewhere is a model of pairs"):
        OwnJudge(dataclasses.replace(model, config=pairs), name="elsewhere")


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(JudgeError, match=r"--judge=hf:gpt2 needs torch and transformers .*\[judge\]"):
        load_judge("hf:gpt2")
    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(MauveError, match=r"mauve-text .*\[mauve\]"):
        load_mauve()


def test_mauve_compares_texts_with_references(monkeypatch):
    def compute_mauve(*, p_text, q_text, featurize_model_name, max_text_length, verbose):
        if featurize_model_name == "absent":
            raise OSError("no network\nat all")
        return types.SimpleNamespace(mauve=np.float64(len(p_text) / len(q_text)))

    monkeypatch.setitem(sys.modules, "mauve", types.SimpleNamespace(compute_mauve=compute_mauve))
    assert load_mauve()(["a", "b"], ["c"]) == 0.5
    with pytest.raises(MauveError, match=r"weights absent \(no network\)"):
        load_mauve("absent")(["a"], ["b"])


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """The folder of a random GPT-2 over nine words, without a begin token; its logits do not depend on torch's seed."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: i for i, word in enumerate(["<end>", "<unk>", "a", "b", "c", "d", "e", "f", "<begin>"])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    folder = tmp_path_factory.mktemp("gpt2")
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", unk_token="<unk>").save_pretrained(
        folder
    )
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=9, n_positions=6, n_embd=8, n_layer=1, n_head=2, initializer_range=0.5,
        bos_token_id=8, eos_token_id=0,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def direct(folder, ids):
    """-log p of ids[1:] given what is before each, without batches or masks."""
    import torch
    from transformers import GPT2LMHeadModel

    with torch.no_grad():
        logp = GPT2LMHeadModel.from_pretrained(folder).eval()(torch.tensor([ids])).logits[0].log_softmax(-1)
    return -sum(float(logp[i, token]) for i, token in enumerate(ids[1:]))


def test_hugging_face_judge_without_a_begin_token(gpt2):
    judge = load_judge(f"hf:{gpt2}", batch_size=2)
    nats, tokens = judge.nll(["a b c", "d e", "f", ""])
    assert tokens == 2 + 1  # the first token of each is only read
    assert nats == pytest.approx(direct(gpt2, [2, 3, 4]) + direct(gpt2, [5, 6]), rel=1e-5)
    # windows of six positions, all the model has
    nats, tokens = judge.nll(["a b c d e f f e d"])
    assert tokens == 5 + 2
    assert nats == pytest.approx(direct(gpt2, [2, 3, 4, 5, 6, 7]) + direct(gpt2, [7, 6, 5]), rel=1e-5)


def test_hugging_face_judge_stops_at_the_first_end_token(gpt2):
    judge = HFJudge(str(gpt2))
    nats, tokens = judge.nll(["a b <end> c d <end> e"])
    assert (nats, tokens) == judge.nll(["a b <end>"])
    assert tokens == 2 and nats == pytest.approx(direct(gpt2, [2, 3, 0]), rel=1e-5)


def test_hugging_face_judge_starts_windows_with_its_begin_token(gpt2, tmp_path):
    from transformers import AutoTokenizer, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    tokenizer.bos_token = "<begin>"
    tokenizer.save_pretrained(tmp_path)
    GPT2LMHeadModel.from_pretrained(gpt2).save_pretrained(tmp_path)
    nats, tokens = HFJudge(str(tmp_path)).nll(["a b c d e f"])
    assert tokens == 6
    assert nats == pytest.approx(direct(gpt2, [8, 2, 3, 4, 5, 6]) + direct(gpt2, [8, 7]), rel=1e-5)


def test_hugging_face_judge_that_is_not_there(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(JudgeError, match="cannot be loaded"):
        HFJudge(str(tmp_path / "nothing"))
