# SPDX-License-Identifier: Apache-2.0
"""Pose estimators, of frames and of videos, and what surrounds them: docs/pose.md, docs/pose_models.md."""

from .dcpose import DCPose, dcpose
from .decode import decode_heatmaps, decode_simcc, flip_heatmaps, heatmap_to_image
from .dkd import DKD, DKDState, dkd, dkd_cost
from .dkd_training import DKDTraining
from .fami_pose import FAMIPose, fami_pose
from .flowing_convnet import FlowingConvNet, flowing_convnet
from .geometry import crop, crop_affine, to_image
from .hrnet import HRNet, hrnet_w32, hrnet_w48
from .inference import for_inference
from .mutual_information import information_loss
from .okdhp import OKDHP, okdhp
from .resnet import ResNet
from .rtmpose import RTMPose, rtmpose
from .simple_baseline import SimpleBaseline, simple_baseline
from .skeleton import COCO17, MPII16, PENN13, POSETRACK17, POSETRACK_EVALUATION15, SUBJHMDB15, Skeleton
from .small import SmallPose, small

__all__ = [
    "COCO17",
    "DKD",
    "MPII16",
    "OKDHP",
    "PENN13",
    "POSETRACK17",
    "POSETRACK_EVALUATION15",
    "SUBJHMDB15",
    "DCPose",
    "DKDState",
    "DKDTraining",
    "FAMIPose",
    "FlowingConvNet",
    "HRNet",
    "RTMPose",
    "ResNet",
    "SimpleBaseline",
    "Skeleton",
    "SmallPose",
    "crop",
    "crop_affine",
    "dcpose",
    "decode_heatmaps",
    "decode_simcc",
    "dkd",
    "dkd_cost",
    "fami_pose",
    "flip_heatmaps",
    "flowing_convnet",
    "for_inference",
    "heatmap_to_image",
    "hrnet_w32",
    "hrnet_w48",
    "information_loss",
    "okdhp",
    "rtmpose",
    "simple_baseline",
    "small",
    "to_image",
]
