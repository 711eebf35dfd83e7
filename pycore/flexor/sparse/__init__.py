# SPDX-License-Identifier: Apache-2.0
"""spconv's interface on flexor's kernels: `import flexor.sparse as spconv` for `import spconv.pytorch as spconv`.

Modules have spconv's names (`core`, `conv`, `pool`, `modules`, `tables`, `functional`, `hash`, `utils`, `ops`), and its
numbers wherever trained weights depend on them. New code may rather use the layers of `flexor.nn`.
"""

from . import conv, core, functional, hash, modules, ops, pool, tables, utils
from .conv import (
    SparseConv1d,
    SparseConv2d,
    SparseConv3d,
    SparseConv4d,
    SparseConvolution,
    SparseConvTranspose1d,
    SparseConvTranspose2d,
    SparseConvTranspose3d,
    SparseConvTranspose4d,
    SparseInverseConv1d,
    SparseInverseConv2d,
    SparseInverseConv3d,
    SparseInverseConv4d,
    SubMConv1d,
    SubMConv2d,
    SubMConv3d,
    SubMConv4d,
)
from .core import Activation, ConvAlgo, IndiceData, SparseConvTensor
from .fuse import fuse
from .modules import (
    Identity,
    RemoveGrid,
    SparseBatchNorm,
    SparseIdentity,
    SparseModule,
    SparseReLU,
    SparseSequential,
    SparseSyncBatchNorm,
    ToDense,
    assign_name_for_sparse_modules,
)
from .pool import (
    SparseAvgPool1d,
    SparseAvgPool2d,
    SparseAvgPool3d,
    SparseAvgPool4d,
    SparseGlobalAvgPool,
    SparseGlobalMaxPool,
    SparseMaxPool1d,
    SparseMaxPool2d,
    SparseMaxPool3d,
    SparseMaxPool4d,
)
from .tables import AddTable, AddTableMisaligned, ConcatTable, JoinTable
from .weights import load_weights
