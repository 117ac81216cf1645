"""faiss.index_factory that knows DPQ codes as well.

A description is parsed here only as far as there is a DPQ code in it, in the order in which FAISS parses:

    IDMap2 or IDMap, last or first; then RFlat or Refine(...), last; then transforms, from the left; then the index.

All parts without a DPQ code are left to faiss.index_factory, coarse quantizers and transforms too.
"""

import re
from dataclasses import dataclass

import faiss

from .registry import ours

_ID_MAPS = {"IDMap2": faiss.IndexIDMap2, "IDMap": faiss.IndexIDMap}

_ROW_SCALES = {"MinMax": faiss.IndexRowwiseMinMax, "MinMaxFP16": faiss.IndexRowwiseMinMaxFP16}
_CODED_LISTS = r"(IVF[0-9]+[kM]?)\((.*DPQ.*)\)"

#: quantizer_trains_alone of coarse quantizers that FAISS's factory does not know better: trained on the centroids that
#: k-means with a flat index finds, and then given them.
_TRAINED_ON_CENTROIDS = "\x02"


def index_factory(d: int, description: str, metric: int = faiss.METRIC_L2, own_invlists: bool = True) -> faiss.Index:
    """The index that a string describes: faiss.index_factory, and "DPQ{M}x{nbits}" where it takes "PQ{M}x{nbits}".

    Parameters
    ----------
    d : int
        Dimension of the vectors.
    description : str
        "DPQ4x8" (an IndexDPQ; "DPQ4" is the same), "IVF1024,DPQ8x8" (an IndexIVFDPQ, with any coarse quantizer that
        FAISS has a string for), "PCA64,DPQ8x8", "OPQ16_64,DPQ8x8", "L2norm,DPQ4x8", "IDMap2,DPQ4x8", "DPQ4x8,RFlat",
        "DPQ4x8,Refine(SQ8)", "MinMax,DPQ4x8", "Residual256,DPQ4x8" (which FAISS makes a codec of; here it is an
        IndexIVFDPQ that searches all lists), "IVF32(DPQ4x8),Flat" (codes as the coarse quantizer), combinations of
        these; or anything that FAISS accepts.
    metric : int
        faiss.METRIC_L2 or faiss.METRIC_INNER_PRODUCT; without a DPQ code, any that FAISS knows.
    own_invlists : bool
        As in faiss.index_factory: without, an index with inverted lists has none before `replace_invlists`.

    Returns
    -------
    index : faiss.Index
        With a DPQ code, an index of this package all through; else just what faiss.index_factory returns.

    Raises
    ------
    RuntimeError
        If the description cannot be parsed, or an index of it cannot be made.
    """
    if not isinstance(description, str) or "DPQ" not in description:
        return faiss.index_factory(d, description, metric, *([] if own_invlists else [False]))
    return _Factory(description, metric, own_invlists).index(d, description)


@dataclass(frozen=True)
class _Factory:
    description: str
    metric: int
    own_invlists: bool

    def error(self, message: str) -> RuntimeError:
        return RuntimeError(f"index_factory: could not parse index string {self.description!r}: {message}")

    def index(self, d: int, text: str) -> faiss.Index:
        """The index that a part of the description, complete in itself, stands for."""
        if "DPQ" not in text:
            return self.stock(d, text)
        parts = self.split(text)
        if len(parts) > 1:
            wrapped = (
                self.id_map(d, parts)
                or self.refined(d, parts)
                or self.scaled_rows(d, parts)
                or self.transformed(d, parts)
            )
            if wrapped is not None:
                return wrapped
            coarse_only = self.ivf_of_another_code(d, parts)
            if coarse_only is not None:
                return coarse_only
        code = re.fullmatch(r"DPQ([0-9]+)(?:x([0-9]+))?(?:np)?", parts[-1])
        if not code:
            raise self.error(f"{parts[-1]!r} is not DPQ{{M}}x{{nbits}}, nor a wrapper of an index")
        M, nbits = int(code[1]), int(code[2] or 8)
        try:
            if len(parts) == 1:
                return ours(faiss.IndexResidualQuantizer)(d, M, nbits, self.metric)
            if len(parts) == 2:
                return self.ivf(d, parts[0], M, nbits)
        except ValueError as error:
            raise self.error(str(error)) from error
        raise self.error(f"{parts[0]!r} is not a transform")

    def stock(self, d: int, text: str) -> faiss.Index:
        try:
            return faiss.index_factory(d, text, self.metric)
        except RuntimeError as error:
            raise self.error(f"FAISS refuses {text!r}: {error}") from error

    def split(self, text: str) -> list[str]:
        """The parts between the commas that are not in parentheses."""
        parts, depth = [""], 0
        for sign in text:
            depth += (sign == "(") - (sign == ")")
            if depth < 0:
                break
            if sign == "," and depth == 0:
                parts.append("")
            else:
                parts[-1] += sign
        if depth:
            raise self.error(f"unbalanced parentheses in {text!r}")
        return parts

    def id_map(self, d: int, parts: list[str]) -> faiss.Index | None:
        for name, id_map in _ID_MAPS.items():
            if parts[-1] == name:
                return ours(id_map)(self.index(d, ",".join(parts[:-1])))
            if parts[0] == name:
                return ours(id_map)(self.index(d, ",".join(parts[1:])))
        return None

    def refined(self, d: int, parts: list[str]) -> faiss.Index | None:
        refine = re.fullmatch(r"Refine\((.+)\)", parts[-1])
        if parts[-1] == "RFlat":
            return ours(faiss.IndexRefineFlat)(self.index(d, ",".join(parts[:-1])))
        if refine:
            return ours(faiss.IndexRefine)(self.index(d, ",".join(parts[:-1])), self.index(d, refine[1]))
        return None

    def scaled_rows(self, d: int, parts: list[str]) -> faiss.Index | None:
        if parts[0] not in _ROW_SCALES:
            return None
        return ours(_ROW_SCALES[parts[0]])(self.index(d, ",".join(parts[1:])))

    def transformed(self, d: int, parts: list[str]) -> faiss.Index | None:
        transforms = []
        while len(parts) > 1 and (transform := _transform(d, parts[0])):
            transforms.append(transform)
            d, parts = transform.d_out, parts[1:]
        if not transforms:
            return None
        index = ours(faiss.IndexPreTransform)(self.index(d, ",".join(parts)))
        for transform in reversed(transforms):
            index.prepend_transform(transform)
        return index

    def ivf_of_another_code(self, d: int, parts: list[str]) -> faiss.Index | None:
        """FAISS's own index with inverted lists, whose coarse quantizer alone is of this package."""
        coded = re.fullmatch(_CODED_LISTS, parts[0])
        if coded is None or len(parts) != 2 or "DPQ" in parts[1]:
            return None
        index = self.stock(d, f"{coded[1]},{parts[1]}")
        quantizer = self.index(d, coded[2])
        if isinstance(quantizer, faiss.IndexResidualQuantizer):
            # C++ trains it here, and needs more centroids than dimensions for the way that is FAISS's default.
            quantizer.rq.train_type &= ~faiss.ResidualQuantizer.Train_progressive_dim
        index.quantizer, index.own_fields = quantizer, False
        index.referenced_objects = [quantizer]
        index.quantizer_trains_alone = _TRAINED_ON_CENTROIDS
        return index

    def ivf(self, d: int, coarse: str, M: int, nbits: int) -> faiss.Index:
        layered = re.fullmatch(r"Residual([0-9]+)(x[0-9]+)?", coarse)
        if layered:
            coarse = f"IMI{layered[1]}{layered[2]}" if layered[2] else f"IVF{layered[1]}"
        coded = re.fullmatch(_CODED_LISTS, coarse)
        # FAISS knows what a coarse quantizer's name stands for, and how it is trained; "Flat" needs nothing more.
        try:
            model = faiss.index_factory(d, f"{coded[1]}(RCQ1x1),Flat" if coded else f"{coarse},Flat", self.metric)
        except RuntimeError as error:
            raise self.error(f"{coarse!r} is neither a transform nor a coarse quantizer: {error}") from error
        if type(model) is not faiss.IndexIVFFlat:
            raise self.error(f"{coarse!r} is neither a transform nor a coarse quantizer")
        model.replace_invlists(None, False)
        if coded:
            quantizer, trains_alone = self.index(d, coded[2]), _TRAINED_ON_CENTROIDS
        else:
            quantizer, trains_alone = faiss.downcast_index(model.quantizer), model.quantizer_trains_alone
            quantizer.referenced_objects = [model]
        index = ours(faiss.IndexIVFResidualQuantizer)(quantizer, d, model.nlist, M, nbits, self.metric)
        index.quantizer_trains_alone = trains_alone
        index.cp.spherical = model.cp.spherical
        if layered:
            index.nprobe = index.nlist
        if not self.own_invlists:
            index.replace_invlists(None, False)
        return index


def _transform(d: int, name: str) -> faiss.VectorTransform | None:
    """The transform that FAISS's name for it stands for; None if it is no such name."""
    try:
        model = faiss.index_factory(d, f"{name},Flat")
    except RuntimeError:
        return None
    if type(model) is not faiss.IndexPreTransform or model.chain.size() != 1:
        return None
    transform = faiss.downcast_VectorTransform(model.chain.at(0))
    # The model stays the owner. Python could become it (thisown), but FAISS 1.15's SWIG counts such owners wrongly, and
    # unloads itself when they are gone.
    transform.referenced_objects = [model]
    return transform
