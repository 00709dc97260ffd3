"""What tests share: fakes, servers, the reference parser."""

from __future__ import annotations
