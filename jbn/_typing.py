"""Types of arguments that several functions take."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Literal

import jax
import numpy as np
from jax.typing import ArrayLike

Array = jax.Array
Axis = int | Sequence[int]
AxisName = Hashable | Sequence[Hashable]
AxisIndexGroups = Sequence[Sequence[int]]
Groups = tuple[tuple[int, ...], ...]
Flag = bool | np.bool_ | Array
Params = Mapping[str, ArrayLike]
BatchStats = Mapping[str, ArrayLike]
RunningVariance = Literal["biased", "unbiased"]
