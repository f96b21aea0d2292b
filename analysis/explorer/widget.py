"""The explorer in a notebook: an anywidget, so the same in Jupyter, VS Code, Colab and marimo.

explorer = analysis.explore(sample)
explorer                                  # click, draw, slide
explorer.selection                        # hooklearn Subspaces: what is ticked at the kept places
explorer.selection = found.top(4)         # and the other way round
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis import markup
from analysis.explorer import static
from analysis.explorer.fallback import picture, table
from analysis.explorer.packing import LIMIT, Packing
from analysis.explorer.payload import Readout, unpack
from analysis.reading import input_error

try:
    import anywidget
    import traitlets
except ImportError as error:
    raise ImportError(
        "the explorer in a notebook is an anywidget: pip install 'hooklearn[notebook]'. "
        "Without it, analysis.explorer.save(sample, 'explorer.html') writes a page that does the same"
    ) from error

WHOLE = 0.999
"""Share of a component that must lie in a given subspace for it to count as chosen there."""


class Explorer(anywidget.AnyWidget):
    """A sample on screen. Traits are shared with the page; use the properties below them."""

    _esm = static.module()
    _css = static.style()
    payload = traitlets.Bytes().tag(sync=True)
    place = traitlets.Int().tag(sync=True)
    axes = traitlets.List(traitlets.Int(), [0, 1]).tag(sync=True)
    chosen = traitlets.Dict().tag(sync=True)
    """Place (its number as text) -> components; a place that is not there has all of them."""
    pinned = traitlets.List(traitlets.Int()).tag(sync=True)
    step = traitlets.Int().tag(sync=True)
    picked = traitlets.List(traitlets.Int()).tag(sync=True)
    asks = traitlets.Bool().tag(sync=True)
    """A model can be asked."""

    def __init__(
        self, sample: Any, *, limit: int = LIMIT, redact: bool = False,
        preview: Callable[[str, Any, float], str] | None = None,
    ) -> None:  # fmt: skip
        self.sample, self._preview = sample, preview
        self._packing = Packing(sample, limit=limit, redact=redact)
        self.packed = unpack(self._packing.data)
        super().__init__(payload=self._packing.data, place=self.packed.header["open"], asks=preview is not None)
        self.on_msg(self._asked)

    def _asked(self, _: Any, message: Mapping[str, Any], __: Any) -> None:
        """The page wants a place in full, for which there was no room at first; or to know what the model says."""
        if message.get("kind") == "place":
            self.send({"kind": "place"}, buffers=[self._packing.place(int(message["place"]))])
        elif message.get("kind") == "preview" and self._preview is not None:
            self.send({"kind": "preview", **self._said(str(message["prompt"]), float(message["scale"]))})

    def _said(self, prompt: str, scale: float) -> dict[str, Any]:
        assert self._preview is not None
        try:
            plain, changed = (self._preview(prompt, self.selection, s) for s in (1.0, scale))
        except ValueError as error:  # nothing is ticked, or nothing was asked
            return {"error": str(error)}
        return {"plain": markup.visible(plain), "changed": markup.visible(changed), "scale": scale}

    # ------------------------------------------------------------------------------------ selection

    def components(self, place: int | None = None) -> list[int] | None:
        """The chosen components of a place (default: the open one), from 0; None where all are."""
        found = self.chosen.get(str(self.place if place is None else place))
        return None if found is None else sorted(int(c) for c in found)

    @property
    def selection(self) -> Any:
        """``Subspaces`` of the kept places (of the open one where none is), narrowed to their ticked components.

        Ticked are columns of ``basis``; where they are not the first ones, they become the ``vectors`` too.
        """
        spaces = self._spaces()
        keys = list(spaces)
        chosen = {keys[p]: self._narrowed(spaces[keys[p]], p) for p in self.pinned or [self.place]}
        return type(spaces)(chosen)

    @selection.setter
    def selection(self, given: Any) -> None:
        spaces = self._spaces()
        wanted = given if isinstance(given, Mapping) else {(given.site.name, given.side): given}
        keys = {key: place for place, key in enumerate(spaces)}
        unknown = [key for key in wanted if key not in keys]
        if unknown or not wanted:
            raise input_error(f"the explorer does not show {unknown[0] if unknown else 'an empty selection'}")
        found = {str(keys[key]): _components(spaces[key], space) for key, space in wanted.items()}
        self.chosen = {**self.chosen, **found}
        self.pinned = sorted(keys[key] for key in wanted)
        self.place = self.pinned[0]

    @property
    def subspace(self) -> Any:
        """The ``Subspace`` of the open place, narrowed to what is ticked."""
        spaces = self._spaces()
        return self._narrowed(list(spaces.values())[self.place], self.place)

    def go_to(self, site: str, side: str = "x") -> None:
        """Show a place by name, such as ``blocks.3.mlp.out``."""
        names = [(p["site"], p["side"]) for p in self.packed.header["places"]]
        if (site, side) not in names:
            raise input_error(
                f"no place {site!r} ({side}); the explorer shows {', '.join(n for n, _ in names[:4])} ..."
            )
        self.place = names.index((site, side))

    @property
    def readout(self) -> Readout:
        """The numbers on screen, for the open place and what is ticked there."""
        thin = self.packed.header["places"][self.place]["bits"] < 16
        packed = unpack(self._packing.opened(self.place)) if thin else self.packed
        count = packed.header["places"][self.place]["count"]
        chosen = self.components()
        return packed.readout(self.place, range(count) if chosen is None else [c for c in chosen if c < count])

    @property
    def tokens(self) -> pd.DataFrame:
        """The picked tokens: token, corpus, held_out, text, position."""
        rows = self.sample.tokens.iloc[self._packing.kept[list(self.picked)]].reset_index(drop=True)
        texts = self.sample.texts.iloc[rows["text"]].reset_index(drop=True)
        said = [words[at] for words, at in zip(texts["tokens"], rows["position"], strict=True)]
        return pd.DataFrame({"token": said, "corpus": texts["corpus"], "held_out": texts["held_out"]}).join(rows)

    def _spaces(self) -> Any:
        spaces = getattr(self.sample, "spaces", None)
        if spaces is None:
            raise input_error(
                "this sample was read from a file, without its subspaces; explorer.chosen has the ticked components"
            )
        return spaces

    def _narrowed(self, space: Any, place: int) -> Any:
        chosen = self.components(place)
        if chosen is None or len(chosen) == space.rank:
            return space
        if not chosen:
            raise input_error(f"no component is ticked at {space.site.name} ({space.side})")
        if chosen == list(range(len(chosen))):
            return space.top(len(chosen))
        return replace(space, vectors=space.basis).select(chosen)

    # ------------------------------------------------------------------------------- without a kernel

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The live view, and what remains of it in a saved notebook: a picture and a table."""
        data, meta = super()._repr_mimebundle_(**kwargs) or ({}, {})
        image = base64.b64encode(picture(self.packed, self.place)).decode()
        still = f'<img src="data:image/png;base64,{image}" alt="map of places, tokens, histogram">{table(self.packed)}'
        return {**data, "text/html": still, "image/png": image}, meta


def _components(space: Any, given: Any) -> list[int]:
    """Which basis vectors of ``space`` span ``given``."""
    inside = (space.basis.T @ given.basis.to(space.basis)).square().sum(1).tolist()
    found = [c for c, share in enumerate(inside) if share > WHOLE]
    if len(found) != given.rank:
        raise input_error(f"{given.site.name} ({given.side}): not a choice of components of what the explorer shows")
    return found
