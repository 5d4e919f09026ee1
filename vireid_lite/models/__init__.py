"""Victim networks: `build` makes one by name; each has `forward`, `embed`, `objective`, `stages` and `classifier`."""

from vireid_lite.models.agw import AGW, CAJ
from vireid_lite.models.baselines import IDE, PCB
from vireid_lite.models.checkpoints import NETWORKS, build, load_checkpoint, save_checkpoint
from vireid_lite.models.ddag import DDAG
from vireid_lite.models.deen import DEEN
from vireid_lite.models.official import load_official
from vireid_lite.models.two_stream import BACKBONES, ModelOutput, TwoStream, check_images
