"""What a model is made of. The door is recognise.py; layers.py begins."""

from torch_gfshadow.network.assemble import Part as Part
from torch_gfshadow.network.assemble import assemble as assemble
from torch_gfshadow.network.maps import two_slopes as two_slopes
from torch_gfshadow.network.point import NetworkPoint as NetworkPoint
from torch_gfshadow.network.point import Pair as Pair
from torch_gfshadow.network.recognise import NotCovered as NotCovered
from torch_gfshadow.network.recognise import Recogniser as Recogniser
from torch_gfshadow.network.recognise import recognise as recognise
from torch_gfshadow.network.values import Stage as Stage
