// @kafkajs/confluent-schema-registry, from the folder argv[3], against the registry at
// argv[2], which holds what another one gave away.
const assert = require('node:assert')
const { SchemaRegistry, SchemaType } = require(process.argv[3])

const record = (id, ...body) => Buffer.from([0, ...new Uint8Array([id >> 24, id >> 16, id >> 8, id]), ...body])

async function main() {
  const registry = new SchemaRegistry({ host: process.argv[2] })
  assert.deepStrictEqual({ ...(await registry.decode(record(100007, 0x2a))) }, { id: 21 })
  assert.deepStrictEqual({ ...(await registry.decode(record(100009, 0x2a, 2))) }, { id: 21, size: 1 })
  assert.strictEqual(await registry.getRegistryId('orders-value', 3), 100012)
  const fields = [
    { name: 'id', type: 'long' },
    { name: 'qty', type: 'int', default: 0 },
    { name: 'note', type: ['null', 'string'], default: null },
  ]
  const schema = JSON.stringify({ type: 'record', name: 'Order', namespace: 'shop', fields })
  const { id } = await registry.register({ type: SchemaType.AVRO, schema }, { subject: 'orders-value' })
  assert.strictEqual(id, 100013)
  const bytes = await registry.encode(id, { id: 21, qty: 2, note: null })
  assert.deepStrictEqual([...bytes], [...record(100013, 0x2a, 4, 0)])
  console.log('all well')
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
