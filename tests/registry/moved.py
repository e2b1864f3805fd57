"""confluent-kafka against the registry at argv[1], which holds what another one gave away."""
import sys

from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

client = SchemaRegistryClient({"url": sys.argv[1]})
context = SerializationContext("orders", MessageField.VALUE)


def record(id, body):
    return b"\0" + id.to_bytes(4, "big") + body


# Written under the old registry, the softly deleted version too.
read = AvroDeserializer(client)
assert read(record(100007, b"\x2a"), context) == {"id": 21}
assert read(record(100009, b"\x2a\x02"), context) == {"id": 21, "size": 1}
assert read(record(100012, b"\x2a\x04"), context) == {"id": 21, "qty": 2}
assert client.get_versions("orders-value") == [1, 3]

# Written by those that register nothing.
settings = {"auto.register.schemas": False, "use.latest.version": True}
latest = client.get_latest_version("orders-value").schema.schema_str
assert AvroSerializer(client, latest, conf=settings)({"id": 21, "qty": 2}, context) == record(100012, b"\x2a\x04")

# And on it goes, behind the greatest id.
fields = '{"name":"id","type":"long"},{"name":"qty","type":"int","default":0},{"name":"note","type":["null","string"],"default":null}'
wider = '{"type":"record","name":"Order","namespace":"shop","fields":[%s]}' % fields
assert client.register_schema("orders-value", Schema(wider, "AVRO")) == 100013
assert AvroDeserializer(client, wider)(record(100007, b"\x2a"), context) == {"id": 21, "qty": 0, "note": None}
print("all well")
