"""The Container Runtime Interface, as much of it as a kubelet needs for pods: values in, values out.

Names and numbers are those of the public protocol (k8s.io/cri-api, runtime.v1); what is not named here
is left out when sent and passed over when received. What a test does with a runtime does not belong here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

MESSAGES = {
    "VersionRequest": "",
    "VersionResponse": "2 runtime_name string, 3 runtime_version string",
    "StatusRequest": "",
    "StatusResponse": "1 status RuntimeStatus",
    "RuntimeStatus": "1 conditions RuntimeCondition*",
    "RuntimeCondition": "1 type string, 2 status bool, 3 reason string, 4 message string",
    "PortMapping": "2 container_port int32, 3 host_port int32, 4 host_ip string",
    "LinuxPodSandboxConfig": "1 cgroup_parent string",
    "PodSandboxMetadata": "1 name string, 2 uid string, 3 namespace string, 4 attempt uint32",
    "PodSandboxConfig": (
        "1 metadata PodSandboxMetadata, 2 hostname string, 5 port_mappings PortMapping*,"
        " 7 annotations map, 8 linux LinuxPodSandboxConfig"
    ),
    "RunPodSandboxRequest": "1 config PodSandboxConfig",
    "RunPodSandboxResponse": "1 pod_sandbox_id string",
    "StopPodSandboxRequest": "1 pod_sandbox_id string",
    "StopPodSandboxResponse": "",
    "RemovePodSandboxRequest": "1 pod_sandbox_id string",
    "RemovePodSandboxResponse": "",
    "PodSandboxStatusRequest": "1 pod_sandbox_id string, 2 verbose bool",
    "PodSandboxStatusResponse": "1 status PodSandboxStatus, 2 info map",
    "PodSandboxStatus": (
        "1 id string, 2 metadata PodSandboxMetadata, 3 state int32, 5 network PodSandboxNetworkStatus"
    ),
    "PodSandboxNetworkStatus": "1 ip string",
    "ListPodSandboxRequest": "",
    "ListPodSandboxResponse": "1 items PodSandbox*",
    "PodSandbox": "1 id string, 2 metadata PodSandboxMetadata, 3 state int32",
    "ImageSpec": "1 image string",
    "ContainerMetadata": "1 name string",
    "ContainerConfig": "1 metadata ContainerMetadata, 2 image ImageSpec, 4 args string*",
    "CreateContainerRequest": (
        "1 pod_sandbox_id string, 2 config ContainerConfig, 3 sandbox_config PodSandboxConfig"
    ),
    "CreateContainerResponse": "1 container_id string",
    "StartContainerRequest": "1 container_id string",
    "StartContainerResponse": "",
}
"""Each message as `number name type`; a star marks a list, `map` is one from text to text."""

READY, NOT_READY = 0, 1
"""State of a sandbox."""

_PACKAGE = "runtime.v1"
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _Field.TYPE_STRING,
    "bool": _Field.TYPE_BOOL,
    "int32": _Field.TYPE_INT32,
    "uint32": _Field.TYPE_UINT32,
}


class CriError(Exception):
    """The runtime refused, or was not there; `details` are its words."""

    def __init__(self, method: str, code: str, details: str) -> None:
        super().__init__(f"{method}: {code}: {details}")
        self.code = code
        self.details = details


class Cri:
    """A connection to a runtime's socket, until `close()`."""

    def __init__(self, socket: Path) -> None:
        quick = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 50)]
        self._channel = grpc.insecure_channel(f"unix://{socket}", options=quick)

    def call(self, method: str, *, timeout: float = 60.0, **fields: Any) -> dict[str, Any]:
        """One call, waiting up to `timeout` seconds for somebody to listen and for the answer."""
        request = json_format.ParseDict(fields, _CLASSES[f"{method}Request"]())
        reply = _CLASSES[f"{method}Response"]
        send = self._channel.unary_unary(
            f"/{_PACKAGE}.RuntimeService/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=reply.FromString,
        )
        try:
            answer = send(request, timeout=timeout, wait_for_ready=True)
        except grpc.RpcError as failed:
            raise CriError(method, failed.code().name, failed.details()) from None
        told: dict[str, Any] = json_format.MessageToDict(
            answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        return told

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _classes() -> dict[str, Any]:
    """The messages' classes by name, made of the table."""
    file = descriptor_pb2.FileDescriptorProto(name="cri.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for each in filter(None, map(str.strip, fields.split(","))):
            number, field, kind = each.split()
            _add_field(message, int(number), field, kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in MESSAGES
    }


def _add_field(message: Any, number: int, name: str, kind: str) -> None:
    label = _Field.LABEL_OPTIONAL
    if kind == "map":  # a list of pairs, marked (protobuf language guide, "Maps")
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add_field(entry, 1, "key", "string")
        _add_field(entry, 2, "value", "string")
        kind = f"{message.name}.{entry.name}*"
    if kind.endswith("*"):
        label, kind = _Field.LABEL_REPEATED, kind[:-1]
    field = message.field.add(name=name, number=number, label=label)
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"


_CLASSES = _classes()
