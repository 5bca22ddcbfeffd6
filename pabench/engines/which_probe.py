"""Which KV probe is served: as its folder says, or by what it answers; and whether its pictures are seen."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np

from pabench.engines.base import Choice
from pabench.engines.cleaning import clean
from pabench.engines.trials import NUM_TOKENS, RING, Trials
from pabench.engines.wording import image_part
from pabench.errors import EngineProtocol, EngineTimeout, UsageError
from pabench.probe import (
    PRESETS,
    SEP,
    Codec,
    ProbePrompt,
    ProbeSpec,
    Ring,
    check_answer,
    draw_parted,
    draw_picture,
    load_spec,
    preset,
)

_USUAL, _WINDOWED, _MIXED = "gqa", "window", "mixed"  # presets that are assumed
# Without the salt that all lookups of a probe match, it falls into its sink; one with windows has no salts.
_UNSALTED = (SEP, *RING.prompt[2:])


def given_probe(probe: str | Path | ProbeSpec | None) -> ProbeSpec | None:
    """The spec that the caller names: a folder, or a preset's name."""
    if probe is None or isinstance(probe, ProbeSpec):
        return probe
    return load_spec(Path(probe)) if Path(probe).is_dir() else preset(str(probe))


async def which_probe(root: str | None, trials: Trials) -> ProbeSpec | None:
    """The probe that is served: as its folder says, else the usual one, or one with windows, where its ring came back.

    A probe that is given or found in the folder stays one when its ring did not come back: the engine is at fault.
    """
    if root is not None:
        try:
            folder = Path(root) if Path(root).is_dir() else Path(root).parent  # of a GGUF file
            if (folder / "probe.json").is_file():
                return load_spec(folder)
        except UsageError as error:
            trials.notes.append(clean(str(error)))
        except OSError as error:  # another user's folder, or a name that no folder can have
            trials.notes.append(clean(f"the model's folder cannot be read: {error.strerror}: {root}"))
    if not trials.is_probe:
        if trials.begins_as_probe:
            trials.notes.append("the ring's beginning came back: a probe that is misread answers like this. If it is "
                                "one, name it with --probe, for its folder is not to be seen from here")
        return None
    assumed = await _assumed(trials)
    trials.notes.append(f"the probe's ring came back; which preset it is was not told: {assumed!r} is assumed "
                        "(name another with --probe)")
    return PRESETS[assumed]


async def _assumed(trials: Trials) -> str:
    """A ring without a salt goes on where a probe has windows; a parted one where only some of its layers have them.

    Not asked by its window: an engine that does not heed it would be taken for one that serves another probe.
    """
    if not await _goes_on(trials, RING, _UNSALTED, "a ring without a salt"):
        return _USUAL
    parted = draw_parted(PRESETS[_MIXED], np.random.default_rng(0), 3)[0]
    return _MIXED if await _goes_on(trials, parted, parted.prompt, "a parted ring") else _WINDOWED


async def _goes_on(trials: Trials, ring: ProbePrompt, prompt: tuple[int, ...], what: str) -> bool:
    """Whether `prompt` is answered as `ring` is."""
    try:
        answer = await trials.ask(trials.request(prompt))
    except (EngineProtocol, EngineTimeout) as error:
        trials.notes.append(f"{what}: {clean(str(error))}")
        return False
    choice = answer.choices[0] if answer.choices else Choice(0)
    check = check_answer(ring, choice.token_ids or Codec.decode(choice.text))
    return check.wrong == 0 and check.verified >= NUM_TOKENS - 1


async def try_pictures(trials: Trials, spec: ProbeSpec) -> None:
    """Whether an image in a chat is taken, of a probe that sees; and whether the client may name it."""
    await trials.attempt("images", lambda: _shown(trials, spec, None))
    if "images" in trials.capabilities and "image_names" in trials.client.dialect.capabilities:
        await trials.attempt("image_names", lambda: _shown(trials, spec, f"pabench-{uuid.uuid4().hex}"))


async def _shown(trials: Trials, spec: ProbeSpec, name: str | None) -> bool:
    """Whether it is answered at all: what is said wrongly is a fault, and asked for later."""
    shown = tuple(range(RING.tokens[-1] + 1, RING.tokens[-1] + 1 + spec.picture_tokens))
    ring = Ring((*RING.tokens, *shown), RING.salt)
    image = image_part(ring, draw_picture(spec, shown), name)
    answer = await trials.ask(replace(trials.request(ring.prompt), chat=True, images=(image,)))
    if not answer.choices:
        raise EngineProtocol("answered with nothing")
    return True
