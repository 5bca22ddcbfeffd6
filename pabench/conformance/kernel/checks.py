"""What tests ask of attention, a function each: (kernel, case) -> None, or CaseFailed.

    equals_dense          the result, as dense attention has it, and the log-sum-exp where the case asks for it
    lse_equals_dense      the log-sum-exp
    equals_dense_wherever equals_dense with the blocks here and there
    same_whatever         bit for bit the same for another case of equal content: what may not matter does not
    same_alone            bit for bit the same for each sequence alone
    same_in_parts         contexts in two parts, merged by LSE, as dense attention has the whole
    every_row_written     no row is left as memory was
    results_stay          a result stays as it is while later calls run, and comes again

Each time the cache is checked to be as it was: attention writes nothing into it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from pabench.conformance.failure import fail
from pabench.conformance.kernel.cases import AttendCase
from pabench.conformance.kernel.diagnosis import explain
from pabench.conformance.kernel.drawing import Content, DrawnAttend, draw_attend, solo
from pabench.conformance.kernel.layouts import same_bits, torch_dtype
from pabench.conformance.kernel.tolerance import Expected, expect
from pabench.conformance.kernel.under_test import KernelUnderTest
from pabench.errors import EngineError

Check = Callable[[KernelUnderTest, AttendCase], None]


def equals_dense(kernel: KernelUnderTest, case: AttendCase) -> None:
    """The result of every row, and its LSE where one is asked for, is dense attention's, within what rounding explains.

    An LSE of its own: parts of a split, of a shared prefix or of 16 bits may make a sound result and an unsound LSE.
    """
    drawn = draw_attend(case, kernel.device)
    out, lse = _attend(kernel, drawn)
    expected = expect(drawn.content, torch_dtype(case.dtype))
    compare_out(case, drawn.content, expected, out)
    if lse is not None:
        _compare_lse(case, expected, lse)


def equals_dense_wherever(kernel: KernelUnderTest, case: AttendCase) -> None:
    """The result is dense attention's with the blocks in several places, and in a cache with more of them."""
    for placement in range(case.placement, case.placement + 3):
        equals_dense(kernel, replace(case, placement=placement))


def lse_equals_dense(kernel: KernelUnderTest, case: AttendCase) -> None:
    """The log-sum-exp of every row is dense attention's, within what rounding explains."""
    drawn = draw_attend(replace(case, with_lse=True), kernel.device)
    _, lse = _attend(kernel, drawn)
    assert lse is not None, "asked of those with the capability lse"
    _compare_lse(case, expect(drawn.content, torch_dtype(case.dtype)), lse)


def same_whatever(**other: object) -> Check:
    """A check that the result is the same, bit for bit, for the case with `other` in place of what it says there."""
    def check(kernel: KernelUnderTest, case: AttendCase) -> None:
        changed = replace(case, **other)  # type: ignore[arg-type]
        out, lse = _attend(kernel, draw_attend(case, kernel.device))
        out_other, lse_other = _attend(kernel, draw_attend(changed, kernel.device))
        words = " and ".join(f"{name} {getattr(case, name)}" for name in other)
        instead = " and ".join(f"{name} {value}" for name, value in other.items())
        _same(case, f"with {words} as with {instead}", out, out_other)
        if lse is not None and lse_other is not None:
            _same(case, f"with {words} as with {instead}", lse, lse_other, "LSE")
    return check


def same_alone(kernel: KernelUnderTest, case: AttendCase) -> None:
    """The rows of each sequence are the same, bit for bit, in the batch as alone."""
    drawn = draw_attend(case, kernel.device)
    out, lse = _attend(kernel, drawn)
    starts = drawn.batch.query_start_loc.tolist()
    for seq in range(len(case.context_lens)):
        rows = slice(starts[seq], starts[seq + 1])
        alone, lse_alone = kernel.attend(solo(drawn.batch, [seq]))
        _same(case, f"sequence {seq} in the batch as alone", out[rows], alone, first_row=starts[seq])
        if lse is not None and lse_alone is not None:
            _same(case, f"sequence {seq} in the batch as alone", lse[rows], lse_alone, "LSE", first_row=starts[seq])


def same_in_parts(kernel: KernelUnderTest, case: AttendCase) -> None:
    """Decodes over the first blocks and over the others, merged by their LSE, are what dense attention has for all."""
    drawn = draw_attend(replace(case, with_lse=True), kernel.device)
    expected, size = expect(drawn.content, torch_dtype(case.dtype)), case.form.block_size
    for blocks in range(1, -(-max(case.context_lens) // size)):
        cut = torch.tensor(case.context_lens).clamp(max=blocks * size)
        parts = []
        for lens, first in ((cut, 0), (torch.tensor(case.context_lens) - cut, blocks)):
            tables = drawn.batch.block_tables[:, first:]
            lens = lens.to(drawn.batch.context_lens)
            parts.append(kernel.attend(replace(drawn.batch, block_tables=tables, context_lens=lens)))
        outs, lses = (torch.stack([part[i].cpu().double() for part in parts]) for i in (0, 1))  # type: ignore[union-attr]
        weights = lses.softmax(0).nan_to_num(0.0)[..., None]
        compare_out(case, drawn.content, expected, (weights * outs).sum(0),
                    f"two parts, cut at position {blocks * size}, merged by their LSE: ")


def every_row_written(kernel: KernelUnderTest, case: AttendCase) -> None:
    """Each row is a number: 0, with LSE -inf, where there is nothing to see. New memory holds NaN."""
    drawn = draw_attend(replace(case, with_lse=True), kernel.device)
    out, lse = _attend(kernel, drawn)
    for row, lens in enumerate(_contexts(case)):
        bad = out[row].isnan().any() or (lens == 0 and (out[row] != 0).any())
        if bad:
            fail(f"{row_text(case, row)}: {'0' if lens == 0 else 'a number'} in every element", _some(out[row]),
                 hint="a row with no work for it is written too; a buffer that is summed into is zeroed first")
        if lse is not None and (lse[row].isnan().any() or (lens == 0 and (lse[row] != -torch.inf).any())):
            fail(f"{row_text(case, row)}: LSE {'-inf' if lens == 0 else 'a number'}", _some(lse[row]))


def results_stay(kernel: KernelUnderTest, case: AttendCase) -> None:
    """A result is not memory that a later call writes to; and the same call gives the same bits."""
    case = replace(case, with_lse=True)
    drawn, other = draw_attend(case, kernel.device), draw_attend(replace(case, seed=case.seed + 1), kernel.device)
    first = kernel.attend(drawn.batch)
    kept = [None if x is None else x.clone() for x in first]
    kernel.attend(other.batch)
    churn = [torch.full_like(x, torch.nan) for x in first if x is not None for _ in range(4)]
    del churn
    for name, now, before in zip(("result", "LSE"), first, kept, strict=True):
        if now is not None and before is not None:
            _same(case, "after later calls as before them", now, before, name)
    for name, repeated, before in zip(("result", "LSE"), kernel.attend(drawn.batch), kept, strict=True):
        if repeated is not None and before is not None:
            _same(case, "a second time as the first time", repeated, before, name)


def scales_count(kernel: KernelUnderTest, case: AttendCase) -> None:
    """With the scales of keys, and then of values, doubled, the result is what dense attention has for doubled ones.

    By either entry: one that gives the LSE too is a path of its own.
    """
    drawn = draw_attend(case, kernel.device)
    cache, content = drawn.batch.cache, drawn.content
    assert cache.key_scale is not None, "asked of scaled caches"
    assert cache.value_scale is not None, "asked of scaled caches"
    keys = replace(drawn, content=replace(content, keys=[2 * key for key in content.keys]),
                   batch=replace(drawn.batch, cache=cache._replace(key_scale=cache.key_scale * 2)))
    values = replace(drawn, content=replace(content, values=[2 * value for value in content.values]),
                     batch=replace(drawn.batch, cache=cache._replace(value_scale=cache.value_scale * 2)))
    for which, each in (("", drawn), ("with key_scale doubled: ", keys), ("with value_scale doubled: ", values)):
        expected = expect(each.content, torch_dtype(case.dtype))
        for with_lse, entry in ((False, ""), (True, "asked for the LSE too: ")):
            out, _ = _attend(kernel, replace(each, batch=replace(each.batch, with_lse=with_lse)))
            compare_out(case, each.content, expected, out, which + entry)


def bad_table_refused(kernel: KernelUnderTest, case: AttendCase) -> None:
    """A live table entry that names no block is refused with an error."""
    drawn = draw_attend(case, kernel.device)
    for number in (-1, drawn.batch.cache.key.shape[0]):
        tables = drawn.batch.block_tables.clone()
        tables[-1, 0] = number
        try:
            kernel.attend(replace(drawn.batch, block_tables=tables))
        except EngineError:  # its end is no refusal
            raise
        except Exception:  # which one is the implementation's own affair
            continue
        fail(f"an error: the table of sequence {len(tables) - 1} begins with block {number} of "
             f"{drawn.batch.cache.key.shape[0]}", "a result", hint="check tables before the launch, or in the kernel")


# What they share ------------------------------------------------------------------------------------------------------


def _attend(kernel: KernelUnderTest, drawn: DrawnAttend) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend, and look whether the cache has stayed as it was."""
    parts = [] if drawn.placed.key.base.numel() >= 2**31 else drawn.placed.parts()
    before = [(name, part.base, part.base.clone()) for name, part in parts]
    result = kernel.attend(drawn.batch)
    for name, now, then in before:
        if not same_bits(now, then).all():
            fail(f"cache.{name} as it was", "attention has written into it")
    return result


def compare_out(case: AttendCase, content: Content, expected: Expected, out: torch.Tensor, where: str = "") -> None:
    """Raise CaseFailed when a result [num_tokens, num_q_heads, value_dim] is not the expected one."""
    got, exact = out.cpu().double(), expected.exact.out
    off = (got - exact).abs().nan_to_num(torch.inf).amax(-1)  # [num_tokens, num_q_heads]
    if (off <= expected.out_error).all():
        return
    row, head = _worst(off / expected.out_error.clamp_min(1e-30))
    dim = int((got[row, head] - exact[row, head]).abs().nan_to_num(torch.inf).argmax())
    wrong = int((off > expected.out_error).sum())
    reads, hint = explain(case, content, row, head, got[row, head], float(expected.out_error[row, head]))
    fail(f"{where}{row_text(case, row)}, query head {head}, element {dim}: {float(exact[row, head, dim]):.6g}, "
         f"within {float(expected.out_error[row, head]):.2g}",
         f"{float(got[row, head, dim]):.6g}; {wrong} of {off.numel()} rows and heads are wrong", reads=reads, hint=hint)


def _compare_lse(case: AttendCase, expected: Expected, lse: torch.Tensor) -> None:
    """Raise CaseFailed when an LSE [num_tokens, num_q_heads] is not the expected one."""
    got = lse.cpu().double()
    off = (got - expected.exact.lse).abs()
    off = torch.where(got == expected.exact.lse, 0.0, off)  # -inf - -inf is NaN
    if ((off <= expected.lse_error) | (got == expected.exact.lse)).all():
        return
    row, head = _worst((off / expected.lse_error.clamp_min(1e-30)).nan_to_num(torch.inf, torch.inf))
    fail(f"{row_text(case, row)}, query head {head}: LSE {float(expected.exact.lse[row, head]):.6g}, "
         f"within {float(expected.lse_error[row, head]):.2g}", f"{float(got[row, head]):.6g}",
         hint="the natural logarithm of the sum of exp(score), scale, soft cap and ALiBi included")


def row_text(case: AttendCase, row: int) -> str:
    """"row 3 (sequence 1, position 41 of 42)"."""
    first = 0
    for seq, (context, rows) in enumerate(zip(case.context_lens, case.query_lens, strict=True)):
        if row < first + rows:
            position = context - rows + row - first
            at = f"position {position} of {context}" if context else "of no positions"
            return f"row {row} (sequence {seq}, {at})"
        first += rows
    return f"row {row}"


def _contexts(case: AttendCase) -> list[int]:
    """The context of the sequence of each row."""
    return [context for context, rows in zip(case.context_lens, case.query_lens, strict=True) for _ in range(rows)]


def _same(
    case: AttendCase, how: str, a: torch.Tensor, b: torch.Tensor, what: str = "result", first_row: int = 0
) -> None:
    """Raise CaseFailed unless a and b [rows, heads, …] are alike, bit for bit; -0 is 0."""
    differ = ~(same_bits(a, b) | (a == b)).flatten(2).all(-1) if a.dim() > 2 else ~(same_bits(a, b) | (a == b))
    if differ.any():
        row, head = (int(x) for x in differ.nonzero()[0])
        off = float((a[row, head] - b[row, head]).abs().nan_to_num(torch.inf).max())
        fail(f"the same {what}, bit for bit, {how}", f"{row_text(case, first_row + row)}, query head {head} differs by "
             f"{off:.3g}; {int(differ.sum())} of {differ.numel()} rows and heads differ")


def _worst(ratio: torch.Tensor) -> tuple[int, int]:
    row, head = divmod(int(ratio.argmax()), ratio.shape[1])
    return row, head


def _some(row: torch.Tensor) -> str:
    return ", ".join(f"{float(x):.4g}" for x in row.flatten()[:4]) + (", …" if row.numel() > 4 else "")


