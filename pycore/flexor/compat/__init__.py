# SPDX-License-Identifier: Apache-2.0
"""Other packages' interfaces, to the letter; what flexor would do otherwise is in `flexor.nn`."""
