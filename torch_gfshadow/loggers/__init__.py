"""Sinks for records: base.py says what a logger is, one file per member, reading.py reads back."""

from collections.abc import Sequence

from torch_gfshadow.hookspecs import hookimpl
from torch_gfshadow.loggers._lines import checked_directory as checked_directory
from torch_gfshadow.loggers._lines import checked_path as checked_path
from torch_gfshadow.loggers.base import Logger as Logger
from torch_gfshadow.loggers.base import make_header as make_header
from torch_gfshadow.loggers.base import not_started as not_started
from torch_gfshadow.loggers.base import to_json as to_json
from torch_gfshadow.loggers.base import to_json_ready as to_json_ready
from torch_gfshadow.loggers.console import ConsoleLogger as ConsoleLogger
from torch_gfshadow.loggers.csv import CsvLogger as CsvLogger
from torch_gfshadow.loggers.flat import numbers as numbers
from torch_gfshadow.loggers.following import Follower as Follower
from torch_gfshadow.loggers.jsonl import JsonlLogger as JsonlLogger
from torch_gfshadow.loggers.memory import MemoryLogger as MemoryLogger
from torch_gfshadow.loggers.reading import RecordFile as RecordFile
from torch_gfshadow.loggers.reading import read_records as read_records
from torch_gfshadow.specs import LoggerSpec


@hookimpl
def gfshadow_loggers() -> Sequence[LoggerSpec]:
    """Register the built-in sinks."""
    return [
        LoggerSpec(name="memory", factory=MemoryLogger, summary="keep records in a list"),
        LoggerSpec(name="jsonl", factory=JsonlLogger, summary="lossless file, one line a record"),
        LoggerSpec(name="csv", factory=CsvLogger, summary="table for spreadsheets"),
        LoggerSpec(name="console", factory=ConsoleLogger, summary="a line every few records"),
    ]
