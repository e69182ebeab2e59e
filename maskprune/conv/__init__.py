"""Convolutions for pictures with few channels: one function, `conv2d`, and the ways behind it, one file each."""

from maskprune.conv.choose import OWN as OWN
from maskprune.conv.choose import Way as Way
from maskprune.conv.choose import conv2d as conv2d
from maskprune.conv.choose import default_way as default_way
from maskprune.conv.choose import describe_way as describe_way
from maskprune.conv.choose import finish as finish
from maskprune.conv.choose import why_not_native as why_not_native
