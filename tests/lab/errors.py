"""EC2's refusals: one exception, and one constructor for each family of texts.

Codes and texts are those of the EC2 API reference ("Error codes for the Amazon EC2 API") or of
public bug reports; where neither names one, the place that raises it says so.
Does not belong here: deciding when to refuse.
"""

from __future__ import annotations

from collections.abc import Iterable


class ApiError(Exception):
    """What EC2 answers instead of a result: a code, a sentence, an HTTP status."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status


# Identifier prefix -> (family of the error code, EC2's word for the thing in the sentence).
# The reference spells a few Malformed codes with "Id"; the NotFound codes with "ID".
_FAMILIES = {
    "eni": ("InvalidNetworkInterface", "networkInterface"),
    "i": ("InvalidInstance", "instance"),
    "subnet": ("InvalidSubnet", "subnet"),
    "vpc": ("InvalidVpc", "vpc"),
    "eni-attach": ("InvalidAttachment", "networkInterfaceAttachment"),
    "trunk-assoc": ("InvalidTrunkInterfaceAssociation", "trunk interface association"),
    "scr": ("InvalidSubnetCidrReservation", "subnet CIDR reservation"),
    "eipalloc": ("InvalidAllocation", "allocation"),
    "eipassoc": ("InvalidAssociation", "association"),
}
_MALFORMED_WITH_SMALL_D = {"eni", "vpc"}


def not_found(prefix: str, ids: Iterable[str]) -> ApiError:
    """The NotFound of a family; several ids are named in one sentence, as EC2 does."""
    named = list(ids)
    quoted = "'" + ", ".join(named) + "'"
    if prefix == "sg":
        return ApiError("InvalidGroup.NotFound", f"The security group {quoted} does not exist")
    code, word = _FAMILIES[prefix]
    if len(named) == 1:
        return ApiError(f"{code}ID.NotFound", f"The {word} ID {quoted} does not exist")
    return ApiError(f"{code}ID.NotFound", f"The {word} IDs {quoted} do not exist")


def malformed(prefix: str, identifier: str) -> ApiError:
    """The Malformed of a family."""
    if prefix == "sg":
        code = "InvalidGroupId.Malformed"
    else:
        small = prefix in _MALFORMED_WITH_SMALL_D
        code = _FAMILIES[prefix][0] + ("Id" if small else "ID") + ".Malformed"
    return ApiError(code, f'Invalid id: "{identifier}" (expecting "{prefix}-...")')


def value(message: str) -> ApiError:
    """InvalidParameterValue with EC2's own sentence."""
    return ApiError("InvalidParameterValue", message)


def bad_value(shown: object, parameter: str, why: str) -> ApiError:
    """InvalidParameterValue in EC2's usual form."""
    return value(f"Value ({shown}) for parameter {parameter} is invalid. {why}")


def combination(message: str) -> ApiError:
    """InvalidParameterCombination: parameters that exclude each other."""
    return ApiError("InvalidParameterCombination", message)


def missing(parameter: str) -> ApiError:
    """MissingParameter for a parameter the model marks as optional and EC2 still wants."""
    return ApiError("MissingParameter", f"The request must contain the parameter {parameter}")


def state(message: str) -> ApiError:
    """IncorrectState: the thing is not in a state that allows the call."""
    return ApiError("IncorrectState", message)


def dependency(message: str) -> ApiError:
    """DependencyViolation: something else still needs the thing."""
    return ApiError("DependencyViolation", message)
