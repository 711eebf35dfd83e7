# SPDX-License-Identifier: Apache-2.0
"""Joint orders of the pose data sets: names, mirror pairs, limbs, and the widths that OKS measures with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

Pairs = tuple[tuple[int, int], ...]

# COCO's per-joint standard deviations. The other data sets publish none: their joints take the nearest of COCO's.
_SIGMAS = {
    **dict.fromkeys(("eye", "neck", "upper_neck", "head_bottom", "head_top"), 0.025),
    **dict.fromkeys(("nose", "head", "face"), 0.026),
    **dict.fromkeys(("shoulder", "thorax"), 0.079),
    **dict.fromkeys(("hip", "pelvis", "belly"), 0.107),
    "ear": 0.035,
    "elbow": 0.072,
    "wrist": 0.062,
    "knee": 0.087,
    "ankle": 0.089,
}
_LOWER_BODY = ("hip", "knee", "ankle", "pelvis")
_ARMS_AND_LEGS = tuple(
    (f"{side}_{a}", f"{side}_{b}")
    for side in ("left", "right")
    for a, b in (("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle"))
)
_TRUNK = (
    ("left_shoulder", "right_shoulder"),
    ("left_shoulder", "left_hip"),
    ("right_shoulder", "right_hip"),
    ("left_hip", "right_hip"),
)


@dataclass(frozen=True)
class Skeleton:
    """A data set's joints, in its order.

    Args:
        name: of the order, for messages.
        joints: their names.
        flip_pairs: indices of the joints that change places in a mirrored image.
        limbs: indices of the joints that a drawing connects.
        sigmas: each joint's standard deviation in OKS, as a share of the square root of the person's area.
        upper_body: indices of the joints above the hips, for half-body crops.
    """

    name: str
    joints: tuple[str, ...]
    flip_pairs: Pairs
    limbs: Pairs
    sigmas: tuple[float, ...]
    upper_body: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.joints)

    def index(self, name: str) -> int:
        """The place of a joint in this order.

        Raises:
            ValueError: a joint that is not in it.
        """
        if name not in self.joints:
            raise ValueError(f"{self.name} has no joint {name!r}; it has {', '.join(self.joints)}")
        return self.joints.index(name)

    def permutation_to(self, other: Skeleton) -> tuple[int, ...]:
        """Where the other skeleton's joints are in this one: `points[:, permutation]` is in the other's order.

        Raises:
            ValueError: joints of the other that this one lacks.
        """
        missing = [joint for joint in other.joints if joint not in self.joints]
        if missing:
            raise ValueError(f"{self.name} cannot be reordered to {other.name}: it lacks {', '.join(missing)}")
        return tuple(map(self.joints.index, other.joints))

    @cached_property
    def mirror(self) -> tuple[int, ...]:
        """The joint that each joint becomes in a mirrored image, itself when it has no partner."""
        partner = dict(self.flip_pairs) | {b: a for a, b in self.flip_pairs}
        return tuple(partner.get(j, j) for j in range(len(self.joints)))


def _skeleton(name: str, joints: str, limbs: str = "") -> Skeleton:
    """A skeleton from its joints' names and the limbs ("a-b c-d") beside arms, legs and trunk."""
    names = tuple(joints.split())
    bare = [joint.removeprefix("left_").removeprefix("right_") for joint in names]
    lefts = [j for j, joint in enumerate(names) if joint.startswith("left_")]
    pairs = [sorted((j, names.index(names[j].replace("left", "right", 1)))) for j in lefts]
    links = [*_ARMS_AND_LEGS, *_TRUNK, *(tuple(limb.split("-")) for limb in limbs.split())]
    return Skeleton(
        name=name,
        joints=names,
        flip_pairs=tuple((a, b) for a, b in sorted(pairs)),
        limbs=tuple((names.index(a), names.index(b)) for a, b in links),
        sigmas=tuple(_SIGMAS[joint] for joint in bare),
        upper_body=tuple(j for j, joint in enumerate(bare) if joint not in _LOWER_BODY),
    )


COCO17 = _skeleton(
    "COCO17",
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist "
    "right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle",
    "nose-left_eye nose-right_eye left_eye-left_ear right_eye-right_ear left_ear-left_shoulder "
    "right_ear-right_shoulder",
)
# What DCPose, FAMI-Pose and PoseTrack18's files use; its ears are never annotated.
POSETRACK17 = _skeleton(
    "POSETRACK17",
    "nose head_bottom head_top left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist "
    "right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle",
    "nose-head_bottom nose-head_top head_bottom-left_shoulder head_bottom-right_shoulder",
)
POSETRACK_EVALUATION15 = _skeleton(
    "POSETRACK_EVALUATION15",
    "right_ankle right_knee right_hip left_hip left_knee left_ankle right_wrist right_elbow right_shoulder "
    "left_shoulder left_elbow left_wrist head_bottom nose head_top",
    "nose-head_bottom nose-head_top head_bottom-left_shoulder head_bottom-right_shoulder",
)
PENN13 = _skeleton(
    "PENN13",
    "head left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist left_hip right_hip left_knee "
    "right_knee left_ankle right_ankle",
    "head-left_shoulder head-right_shoulder",
)
SUBJHMDB15 = _skeleton(
    "SUBJHMDB15",
    "neck belly face right_shoulder left_shoulder right_hip left_hip right_elbow left_elbow right_knee left_knee "
    "right_wrist left_wrist right_ankle left_ankle",
    "neck-face neck-belly neck-left_shoulder neck-right_shoulder belly-left_hip belly-right_hip",
)
MPII16 = _skeleton(
    "MPII16",
    "right_ankle right_knee right_hip left_hip left_knee left_ankle pelvis thorax upper_neck head_top right_wrist "
    "right_elbow right_shoulder left_shoulder left_elbow left_wrist",
    "upper_neck-head_top thorax-upper_neck thorax-pelvis thorax-left_shoulder thorax-right_shoulder pelvis-left_hip "
    "pelvis-right_hip",
)
