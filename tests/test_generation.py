"""Generation is the model: whatever has changed in a model, the next text is what its forward pass says."""

import copy
import random
from collections.abc import Callable
from contextlib import ExitStack, suppress
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, tries
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import config as jaxtyping_config
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nyx import NYX, NYXConfig
from nyx.attention import causal_attention
from nyx.check import using
from nyx.lora import add_adapter, merge_adapters, use_adapters
from nyx.sampling import prefill

PROMPT = torch.tensor([list(b"To be, or not")])


@pytest.fixture
def unchecked():
    """Without the checks of shapes, which other tests make: a property with thousands of examples has no time for them."""
    before = jaxtyping_config.jaxtyping_disable
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", before)


def small(seed: int = 0, **changes: object) -> NYX:
    """A model of random weights whose logits are well apart, in eval mode."""
    torch.manual_seed(seed)
    shape = {"model_dim": 16, "layer_depth": 2, "num_attention_heads": 2, "head_dim": 8, "ff_mult": 1}
    model = NYX(NYXConfig.from_dict(shape | changes)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.5)
    return model


def greedy(model: nn.Module, prompt: Tensor, new: int) -> tuple[Tensor, float]:
    """What the forward pass alone says comes next, and the smallest lead of a best logit, relative to the largest."""
    text, lead = prompt, float("inf")
    with torch.no_grad():
        for _ in range(new):
            logits = model(text)[:, -1]
            best = logits.topk(2).values[0]
            lead = min(lead, ((best[0] - best[1]) / logits.abs().max()).item())
            text = torch.cat((text, logits.argmax(-1, keepdim=True)), 1)
    return text[:, prompt.shape[1] :], lead


def agrees(model: NYX) -> None:
    """Assert that text, stream and packed logits are those of a deep copy's forward pass."""
    twin = copy.deepcopy(model)
    expected, lead = greedy(twin, PROMPT, 2)
    got = model.generate(PROMPT, 2, temperature=0, precision="auto")
    streamed = b"".join(t.encode() for t in model.stream(bytes(PROMPT[0].tolist()), 2, temperature=0))
    if lead > 1e-3:
        assert got.tolist() == expected.tolist()
        assert streamed.decode() == bytes(expected[0].tolist()).decode(errors="replace")
    try:
        decoder = model.decoder("float32")
    except ValueError:
        return  # not the function that a packed copy is: the model itself has generated
    with torch.no_grad():
        logits, whole = decoder(PROMPT, decoder.new_cache(1, PROMPT.shape[1])), twin(PROMPT)
    assert (logits - whole).abs().max() <= 1e-4 * whole.abs().max()


# Changes. Each takes a model, a generator of random choices, and a stack for what has to be undone.


def some(model: NYX, draw: random.Random) -> nn.Parameter:
    """One of the weights that the prompt reaches."""
    return draw.choice([p for p in model.parameters() if p.requires_grad])


def element(tensor: Tensor, draw: random.Random) -> tuple[int, ...]:
    """A place in a tensor; of an embedding, a row that the prompt reads."""
    place = [draw.randrange(size) for size in tensor.shape]
    if tensor.shape[0] == 256:
        place[0] = draw.choice(PROMPT[0].tolist())
    return tuple(place)


@torch.no_grad()
def one_element(model, draw, stack):
    p = some(model, draw)
    p[element(p, draw)] += 3


def one_element_detached(model, draw, stack):
    p = some(model, draw)
    p.detach()[element(p, draw)] -= 3


def one_element_through_data(model, draw, stack):
    p = some(model, draw)
    p.data[element(p, draw)] += 3


def one_element_through_numpy(model, draw, stack):
    p = some(model, draw)
    p.detach().numpy()[element(p, draw)] -= 3


def shared_memory(model, draw, stack):
    p = some(model, draw)
    torch.from_numpy(p.detach().numpy())[element(p, draw)] += 3


def descent_through_data(model, draw, stack):
    model.loss(PROMPT).backward()
    for p in model.parameters():
        if p.grad is not None:
            p.data -= 0.3 * p.grad.sign()


def two_elements_change_places(model, draw, stack):
    array = some(model, draw).detach().numpy().reshape(-1)
    i, j = draw.sample(range(array.size), 2)
    array[[i, j]] = array[[j, i]]


def two_signs_flip(model, draw, stack):
    flat = some(model, draw).data.view(-1)
    flat[draw.sample(range(len(flat)), 2)] *= -1


@torch.no_grad()
def all_signs_flip(model, draw, stack):
    some(model, draw).neg_()


@torch.no_grad()
def rows_roll(model, draw, stack):
    p = some(model, draw)
    p.copy_(p.roll(draw.randrange(1, p.shape[0]), 0))


def constant_fill(model, draw, stack):
    some(model, draw).data.fill_(draw.choice([0.0, 0.25, -1.0]))


def other_weights(model, draw, stack):
    other = small(draw.randrange(10**6), num_kv_heads=model.config.num_kv_heads)
    if model.state_dict().keys() == other.state_dict().keys():
        model.load_state_dict(other.state_dict())


def optimizer_step(model, draw, stack):
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = draw.choice([torch.optim.SGD, torch.optim.AdamW])(trained, lr=0.1)
    model.loss(PROMPT).backward()
    optimizer.step()


def new_parameter(model, draw, stack):
    layer = draw.choice(model.blocks).ff_out
    if "weight" in layer._parameters:
        layer.weight = nn.Parameter(torch.randn_like(layer.weight))


def new_storage(model, draw, stack):
    p = some(model, draw)
    p.data = torch.randn_like(p)


def new_module(model, draw, stack):
    draw.choice(model.blocks).ff_out = nn.Linear(16, 16, bias=draw.choice([True, False]), dtype=model.embedding.weight.dtype)


def wrapped_module(model, draw, stack):
    block = draw.choice(model.blocks)
    block.attn_out = nn.Sequential(block.attn_out, nn.Tanh())


class Wrapper(nn.Module):
    """A layer in the manner of peft: its `.weight` is that of the layer inside, and it computes something else."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    @property
    def weight(self) -> Tensor:
        return self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) - 0.5 * x[..., : self.inner.weight.shape[0]]


def wrapped_like_peft(model, draw, stack):
    block = draw.choice(model.blocks)
    if isinstance(block.attn_out, nn.Linear):
        block.attn_out = Wrapper(block.attn_out)


def adapter(model, draw, stack):
    name, targets = f"a{draw.randrange(10**9)}", model.lora_targets(draw.choice(["q", "v", "ff_out"]))
    try:
        add_adapter(model, name, targets, rank=2, alpha=3.0)
    except ValueError:  # the layer is no linear layer any more, or adapters are merged
        return
    for path, p in model.named_parameters():
        if name in path:
            nn.init.normal_(p, std=0.5)


def adapters_off(model, draw, stack):
    adapter(model, draw, stack)
    model.generate(PROMPT, 1)
    with suppress(ValueError):  # some are merged
        use_adapters(model)


def adapters_merged(model, draw, stack):
    adapter(model, draw, stack)
    model.generate(PROMPT, 1)
    with suppress(ValueError):  # none is on, or one is merged already
        merge_adapters(model)


def other_dtype(model, draw, stack):
    model.to(draw.choice([torch.float64, torch.float32]))


def hook(model, draw, stack):
    module = draw.choice([m for m in model.modules() if isinstance(m, nn.Linear | nn.LayerNorm | nn.Embedding)])
    module.register_forward_hook(lambda module, given, out: out * (1 + out.shape[1] / 7))


def pre_hook(model, draw, stack):
    module = draw.choice([m for m in model.modules() if isinstance(m, nn.Linear | nn.LayerNorm)])
    module.register_forward_pre_hook(lambda module, given: (given[0] - given[0].mean(1, keepdim=True),))


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def parametrization(model, draw, stack):
    layer = draw.choice(model.blocks).ff_out
    if type(layer) is nn.Linear:
        parametrize.register_parametrization(layer, "weight", Doubled())


class Reversed(NYX):
    """A subclass whose forward pass is its own, and knows of no cache."""

    def forward(self, tokens: Tensor) -> Tensor:
        return -super().forward(tokens)


def subclass(model, draw, stack):
    model.__class__ = Reversed


def other_epsilon(model, draw, stack):
    draw.choice(model.blocks).norm.eps = 0.5


def other_frequencies(model, draw, stack):
    model.rotary.base = 3.0


def method_of_its_own(model, draw, stack):
    heads = draw.choice(model.blocks).heads
    own = type(heads).forward
    heads.forward = lambda q, k, v, rotations, remember=None, mask=None: own(heads, q, k, 3 * v, rotations, remember, mask)


def replaced_part(model, draw, stack):
    stack.enter_context(using(swiglu=lambda a, gate: a * gate.sigmoid() - gate))


def function_of_torchs_replaced(model, draw, stack):
    real = F.layer_norm
    stack.enter_context(mock.patch.object(F, "layer_norm", lambda x, *rest: real(x, *rest) + 0.5))


def block_replaced(model, draw, stack):
    model.blocks[1] = model.blocks[0]


CHANGES = [
    one_element, one_element_detached, one_element_through_data, one_element_through_numpy, shared_memory, descent_through_data,
    two_elements_change_places, two_signs_flip, all_signs_flip, rows_roll, constant_fill, other_weights, optimizer_step,
    new_parameter, new_storage, new_module, wrapped_module, wrapped_like_peft, adapter, adapters_off, adapters_merged,
    other_dtype, hook, pre_hook, parametrization, subclass, other_epsilon, other_frequencies, method_of_its_own, replaced_part,
    function_of_torchs_replaced, block_replaced,
]  # fmt: skip


@tries(500, 10_000)
@given(st.integers(0, 2**32 - 1))
def test_any_change_is_seen_by_the_next_text(unchecked, seed):
    """A model that has generated in two precisions is changed at random; the next text is that of a copy made afterwards."""
    draw = random.Random(seed)
    model = small(seed % 1000, num_kv_heads=draw.choice([1, 2]))
    model.generate(PROMPT, 2, precision=draw.choice(["float32", "bf16", "int8"]))
    with ExitStack() as stack:
        for change in draw.choices(CHANGES, k=draw.choice([1, 1, 2, 3])):
            agrees(model)
            change(model, draw, stack)
        agrees(model)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_each_change_is_one(change: Callable):
    """What the property above tries really moves the logits, but for what only changes the form."""
    draw, model = random.Random(5), small(5)
    before = model(PROMPT).detach().clone()
    model.generate(PROMPT, 2)
    with ExitStack() as stack:
        change(model, draw, stack)
        agrees(model)
        moved = (model(PROMPT) - before).abs().max() / before.abs().max()
    assert moved > 1e-4 or change in (adapters_off, other_dtype)


def test_what_torch_records_is_recognised_without_reading_the_weights():
    """Names, versions and places tell every change that torch sees; no bit of a weight is looked at for that."""
    from nyx.fastpath import marks, tensors_of

    for change in (one_element, one_element_detached, all_signs_flip, rows_roll, other_weights, optimizer_step, new_parameter, new_module):
        model, draw = small(3), random.Random(3)
        tensors = tensors_of(model)
        before = marks(tensors)
        change(model, draw, None)
        assert marks(tensors_of(model)) != before, change.__name__


@pytest.mark.parametrize("request_", [{"precision": "int8"}, {"precision": "bf16"}, {"precision": "float32"}, {"draft": "text"}], ids=str)
def test_what_an_altered_model_cannot_honour_is_an_error_in_a_sentence(request_):
    """With a hook there is no packed copy: a precision or a draft that was asked for is refused, and says why."""
    model = small()
    model.blocks[0].norm.register_forward_hook(lambda module, given, out: 2 * out)
    with pytest.raises(ValueError, match=r"blocks\.0\.norm has a forward hook.*leave out precision and draft"):
        model.generate(PROMPT, 2, **request_)
    with pytest.raises(ValueError, match="forward hook"):
        small().generate(PROMPT, 2, draft=model)  # nor can it draft for another
    assert model.generate(PROMPT, 2).shape == (1, 2)


def test_altered_models_generate_batches_of_unequal_prompts():
    """Each sequence of a batch is the one that it would be alone, hooks that look at all positions included."""
    model = small(2).double()
    model.blocks[0].attn_out.register_forward_hook(lambda module, given, out: out - out.mean(1, keepdim=True))
    words = torch.randint(0, 256, (3, 9))
    lengths = torch.tensor([9, 4, 6])
    together = model.generate(words, 4, lengths=lengths, temperature=0)
    assert lengths.tolist() == [9, 4, 6]
    for row, length, new in zip(words, lengths, together):
        assert new.tolist() == greedy(model, row[None, :length], 4)[0][0].tolist()


def test_generation_leaves_modes_as_they_were():
    """A module that was set to eval by itself stays so, and the rest goes on training."""
    model = small(attn_dropout=0.1, ff_dropout=0.1).train()
    model.blocks[0].ff_dropout.eval()
    before = [m.training for m in model.modules()]
    model.generate(PROMPT, 2)
    list(model.stream("ab", 2))
    assert [m.training for m in model.modules()] == before and not all(before)


def test_alternating_precisions_pack_once(monkeypatch):
    """Each precision is packed once, however often it is asked for in turn; after a change, once more."""
    from nyx import model as module

    packed = []

    class Counted(module.Decoder):
        def __init__(self, model, precision):
            packed.append(precision)
            super().__init__(model, precision)

    monkeypatch.setattr(module, "Decoder", Counted)
    monkeypatch.setattr(module.ORIGINALS, "replaced", lambda: None)
    model = small()
    for _ in range(3):
        for precision in ("float32", "bf16", "int8", "auto"):
            model.generate(PROMPT, 1, precision=precision)
    assert packed == ["float32", "bf16", "int8"]  # auto is float32 for a model of this size
    model.norm.weight.data[0] += 1
    model.generate(PROMPT, 1, precision="bf16")
    assert packed == ["float32", "bf16", "int8", "bf16"]


def rows_of_logits(monkeypatch, run: Callable[[], object], rows: int) -> int:
    """How many rows are multiplied by a matrix with `rows` rows, the vocabulary's, during `run`."""
    counted, real = [], F.linear

    def linear(x, weight, *rest):
        if weight.shape[0] == rows:
            counted.append(x.numel() // x.shape[-1])
        return real(x, weight, *rest)

    monkeypatch.setattr(F, "linear", linear)
    run()
    return sum(counted)


@pytest.mark.parametrize("fast", [True, False], ids=["packed", "model"])
def test_prefill_computes_the_logits_that_it_keeps(monkeypatch, fast):
    """Of prompts of unequal lengths, in several pieces, one row of logits each; they are those of a full pass."""
    model = small(vocab_size=300).double()  # float64 is never packed: every product is F.linear
    words, lengths = torch.randint(0, 256, (2, 40)), torch.tensor([40, 11])
    which = model.decoder("float32") if fast else model
    found = []
    with torch.inference_mode():
        rows = rows_of_logits(monkeypatch, lambda: found.append(prefill(which, words, which.new_cache(2, 40), lengths, piece=16)), 300)
        assert rows == 2
        expected = torch.stack((model(words)[0, -1], model(words[1:, :11])[0, -1]))
    torch.testing.assert_close(found[0], expected)


@pytest.mark.parametrize("capacity", [1101, 1102])
def test_a_cache_may_have_any_number_of_slots(capacity):
    """A model's own cache serves its packed copy past 1,024 positions, be its capacity even or odd."""
    model = small(layer_depth=1).double()
    text = torch.randint(0, 256, (1, capacity))
    decoder, cache = model.decoder("float32"), model.new_cache(1, capacity)
    with torch.inference_mode():
        steps = [decoder(piece, cache)[:, -1] for piece in text.split([capacity - 8] + [1] * 8, 1)]
        torch.testing.assert_close(torch.stack(steps, 1), model(text)[:, capacity - 9 :], rtol=1e-7, atol=1e-7)


def test_gradients_of_functions_pass_through_attention():
    """`torch.func.grad` gives what `backward` gives, for attention in blocks too (bfloat16 on a CPU)."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, h, 300, 8).bfloat16() for h in (4, 1, 1))

    def total(q):
        return causal_attention(q, k, v).float().square().sum()

    leaf = q.clone().requires_grad_()
    total(leaf).backward()
    torch.testing.assert_close(torch.func.grad(total)(q), leaf.grad)


def test_from_pretrained_refuses_options_that_it_does_not_have():
    """A dtype, a dropout or a misspelt option is an error, not nothing."""
    folder = ROOT / "weights" / "nyx-mini"
    for wrong in ({"torch_dtype": torch.float16}, {"attn_dropout": 0.1}, {"nonsense": 1}):
        with pytest.raises(TypeError, match=next(iter(wrong))):
            NYX.from_pretrained(folder, **wrong)
    assert NYX.from_pretrained(folder, local_files_only=True).config.layer_depth == 2


def test_chunks_of_a_wide_loss_keep_the_cores_busy(monkeypatch):
    """A loss over GPT-2's vocabulary is computed in chunks of at least 128 positions."""
    model, rows = NYX(NYXConfig(vocab_size=50_257, model_dim=8, layer_depth=1, num_attention_heads=1, head_dim=8)), []
    real = F.cross_entropy
    monkeypatch.setattr(F, "cross_entropy", lambda x, *rest, **more: (rows.append(len(x)), real(x, *rest, **more))[1])
    model.loss(torch.randint(0, 50_257, (2, 301)))
    assert sum(rows) == 600 and all(n >= 128 for n in rows[:-1])
