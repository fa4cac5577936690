"""How a run is spread over devices: one interface, and three forms of the same pure functions.

`jit` on one device, `pmap` with a copy of the state on each, and `mesh`, where each device has a
part of it. Algorithms, pieces and models do not know which is used.
"""

from polopt.train.parallel.choice import choose, forms
from polopt.train.parallel.form import Parallel
from polopt.train.parallel.jit import Jit
from polopt.train.parallel.mesh import Sharded, make_mesh
from polopt.train.parallel.pmap import Pmap

__all__ = ["Jit", "Parallel", "Pmap", "Sharded", "choose", "forms", "make_mesh"]
