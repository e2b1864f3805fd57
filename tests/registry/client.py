"""confluent-kafka's serializers against the registry at argv[1]."""
import sys

from confluent_kafka.schema_registry import Schema, SchemaReference, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.schema_registry.error import SchemaRegistryError
from confluent_kafka.serialization import MessageField, SerializationContext

client = SchemaRegistryClient({"url": sys.argv[1]})
context = SerializationContext("orders", MessageField.VALUE)
ID = '{"name":"id","type":"long"}'
NOTE = '{"name":"note","type":["null","string"],"default":null}'


def order(*fields):
    return '{"type":"record","name":"Order","namespace":"shop","fields":[%s]}' % ",".join(fields)


# Two versions, written and read across.
old = AvroSerializer(client, order(ID))({"id": 1}, context)
new = AvroSerializer(client, order(ID, NOTE))({"id": 2, "note": "hi"}, context)
assert old[:5] == b"\0\0\0\0\1" and new[:5] == b"\0\0\0\0\2", (old, new)
read_old = AvroDeserializer(client, order(ID))
read_new = AvroDeserializer(client, order(ID, NOTE))
assert read_new(old, context) == {"id": 1, "note": None}
assert read_old(new, context) == {"id": 2}
assert AvroDeserializer(client)(new, context) == {"id": 2, "note": "hi"}

# An incompatible one is refused, with every reason.
bad = Schema(order('{"name":"id","type":"string"}', '{"name":"x","type":"int"}'), "AVRO")
assert not client.test_compatibility("orders-value", bad)
try:
    client.register_schema("orders-value", bad)
    raise AssertionError("it was taken")
except SchemaRegistryError as error:
    assert error.http_status_code == 409 and error.error_code == 40901, error
    assert "TYPE_MISMATCH" in error.error_message and "READER_FIELD_MISSING_DEFAULT_VALUE" in error.error_message, error
try:
    AvroSerializer(client, bad.schema_str)({"id": "a", "x": 1}, context)
    raise AssertionError("it was taken")
except SchemaRegistryError as error:
    assert error.http_status_code == 409, error

# What its other methods see.
assert client.get_subjects() == ["orders-value"]
assert client.get_versions("orders-value") == [1, 2]
latest = client.get_latest_version("orders-value")
assert (latest.version, latest.schema_id, latest.subject) == (2, 2, "orders-value"), latest
assert client.lookup_schema("orders-value", Schema(order(ID), "AVRO")).version == 1
assert client.get_compatibility() == "BACKWARD"
assert client.set_compatibility("orders-value", "NONE")["compatibility"] == "NONE"
assert client.get_compatibility("orders-value") == "NONE"
assert client.register_schema("orders-value", bad) == 3

# References.
client.register_schema("address", Schema('{"type":"record","name":"shop.Address","fields":[{"name":"city","type":"string"}]}', "AVRO"))
customer = Schema(
    '{"type":"record","name":"shop.Customer","fields":[{"name":"a","type":"shop.Address"}]}',
    "AVRO",
    [SchemaReference("shop.Address", "address", 1)],
)
serialize = AvroSerializer(client, customer)
there = SerializationContext("customers", MessageField.VALUE)
assert AvroDeserializer(client, customer)(serialize({"a": {"city": "Ulm"}}, there), there) == {"a": {"city": "Ulm"}}

# A subject that must be encoded; deleting.
name = "a/b %ü"
assert client.register_schema(name, Schema('"int"', "AVRO")) > 0
assert client.get_versions(name) == [1]
assert client.delete_version(name, 1) == 1
assert client.delete_subject("orders-value") == [1, 2, 3]
assert client.delete_subject("orders-value", permanent=True) == [1, 2, 3]
assert sorted(client.get_subjects()) == ["address", "customers-value"]
print("all well")
