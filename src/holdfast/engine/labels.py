"""The schema of labels: `Holdfast(labels_schema=Labels)`, what the labels of every run must be.

Labels are texts, so the schema reads texts, also where it is strict: "5" is an `int`, "true" a `bool`. What is stored
is what it made of them, as texts again. So that a run can be triggered again, it must take what it gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, get_args, get_origin

import pydantic
from pydantic import BaseModel, PydanticUserError, TypeAdapter
from pydantic_core import to_json

from ..basis.errors import ValidationError
from ..basis.text import error_text, shown
from ..basis.values import problems, why_no_schema
from .registry import checked_labels
from .schema import is_model

#: Since 2.12 what is unknown can be refused without a word of it in the class.
_CAN_FORBID = tuple(int(part) for part in pydantic.VERSION.split(".")[:2]) >= (2, 12)


class LabelsSchema:
    """A model, dataclass or TypedDict that labels are checked by. `ValidationError` if it is none of these."""

    def __init__(self, schema: Any) -> None:
        if not is_model(schema):
            raise ValidationError(f"labels_schema: {shown(schema)} is no model class, dataclass or TypedDict.")
        try:
            adapter: TypeAdapter[Any] = TypeAdapter(schema)
            # Its type says that every value may be a dict, and no mapping of texts is one of those.
            self._read: Any = adapter.validator.validate_strings
            self._write = adapter.serializer.to_python
        except (PydanticUserError, NameError, TypeError) as error:
            raise ValidationError(f"labels_schema: {shown(schema)} can't be read: {why_no_schema(error)}") from error
        # Pydantic drops what a dataclass or TypedDict doesn't know. A label with a slip in its key must not be lost.
        self._how: dict[str, Any] = {}
        if not _says_extra(schema):
            if not _CAN_FORBID:
                raise ValidationError(
                    f"labels_schema: {shown(schema)} must say what happens to unknown labels, e.g. by "
                    '@pydantic.with_config(ConfigDict(extra="forbid")); without that it needs Pydantic 2.12.'
                )
            self._how["extra"] = "forbid"

    def parsed(self, labels: Mapping[str, str]) -> dict[str, str]:
        """The labels as the schema has them, defaults filled in; `ValidationError` listing every problem."""
        try:
            found = self._read({**labels}, **self._how)
            # As they are read: by their aliases, and without what is computed of them.
            tree = self._write(found, mode="json", by_alias=True, round_trip=True, warnings=False)
        except pydantic.ValidationError as error:
            raise ValidationError(f"labels: {problems(error, '')}") from None
        except Exception as error:  # a validator of the user's may raise anything
            raise ValidationError(f"labels: {error_text(error, 500)}") from error
        if not isinstance(tree, dict):
            return checked_labels(tree)  # refuses it
        return checked_labels({key: _text(value) for key, value in tree.items() if value is not None})


def _text(value: Any) -> Any:
    """The JSON of a number or a bool; the rest as it is."""
    if isinstance(value, int | float):
        return to_json(value, inf_nan_mode="constants").decode()
    return value


def _says_extra(schema: Any) -> bool:
    while get_origin(schema) is Annotated:
        schema = get_args(schema)[0]
    kind = get_origin(schema) or schema
    return issubclass(kind, BaseModel) or "extra" in (getattr(kind, "__pydantic_config__", None) or {})
