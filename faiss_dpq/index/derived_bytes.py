"""How much of what searches derive from the codes an index keeps."""

import faiss
import numpy as np


class KeepsDerived(faiss.Index):
    """An index that derives from its codes what makes searches faster, and keeps a bounded amount of it."""

    _most_derived: float | None = None  # that was set

    @property
    def derived_bytes_per_vector(self) -> float:
        """How many bytes a vector `memory_usage` may tell as "derived", for all prefix lengths together.

        16 more than a code has, unless set. What is derived makes searches faster; results do not depend on it. With 0
        nothing is kept, and every search derives what it needs: of flat codes a part at a time, of inverted lists those
        that it probes. Setting it lets go of what is kept. Stored in files.
        """
        return 16 + self.code_size if self._most_derived is None else self._most_derived

    @derived_bytes_per_vector.setter
    def derived_bytes_per_vector(self, value: float | None) -> None:
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int | float | np.number) or not value >= 0
        ):
            name = f"{type(self).__name__}.derived_bytes_per_vector"
            raise ValueError(f"{name} is {value!r}, expected a number >= 0, or None")
        self._most_derived = None if value is None else float(value)
        self._let_go_of_derived()

    @property
    def _derived_bytes(self) -> float | None:
        """`derived_bytes_per_vector` as it was set: shorter copies have another default."""
        return self._most_derived

    @_derived_bytes.setter
    def _derived_bytes(self, value: float | None) -> None:
        self.derived_bytes_per_vector = value  # type: ignore[assignment]

    def _let_go_of_derived(self) -> None:
        raise NotImplementedError
