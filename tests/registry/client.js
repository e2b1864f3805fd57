// @kafkajs/confluent-schema-registry, from the folder argv[3], against the registry at argv[2].
const assert = require('node:assert')
const { SchemaRegistry, SchemaType } = require(process.argv[3])

const order = (...fields) => ({
  type: SchemaType.AVRO,
  schema: JSON.stringify({ type: 'record', name: 'Order', namespace: 'shop', fields }),
})
const id = { name: 'id', type: 'long' }
const note = { name: 'note', type: ['null', 'string'], default: null }

async function main() {
  const host = process.argv[2]
  const registry = new SchemaRegistry({ host })
  const options = { subject: 'orders-value' }
  const first = await registry.register(order(id), options)
  const second = await registry.register(order(id, note), options)
  assert.deepStrictEqual([first.id, second.id], [1, 2])
  assert.strictEqual((await registry.register(order(id), options)).id, 1)

  const old = await registry.encode(1, { id: 7 })
  const wider = await registry.encode(2, { id: 8, note: 'hi' })
  // One that has cached nothing.
  const reader = new SchemaRegistry({ host })
  assert.deepStrictEqual({ ...(await reader.decode(old)) }, { id: 7 })
  assert.deepStrictEqual({ ...(await reader.decode(wider)) }, { id: 8, note: 'hi' })
  const avro = (await reader.getSchema(2))
  assert.deepStrictEqual({ ...(await reader.decode(old, { AVRO: { readerSchema: avro } })) }, { id: 7, note: null })
  assert.strictEqual(await reader.getLatestSchemaId('orders-value'), 2)
  assert.strictEqual(await reader.getRegistryId('orders-value', 1), 1)
  assert.strictEqual(await reader.getRegistryIdBySchema('orders-value', order(id)), 1)

  await assert.rejects(registry.register(order({ name: 'id', type: 'string' }), options), (error) => {
    assert.match(error.message, /TYPE_MISMATCH/)
    return true
  })
  // It sets a level where it finds none, and refuses another where it finds one.
  const level = await fetch(`${host}/config/orders-value`)
  assert.deepStrictEqual(await level.json(), { compatibilityLevel: 'BACKWARD' })
  await assert.rejects(registry.register(order(id), { ...options, compatibility: 'FULL' }), /BACKWARD/)

  const address = { type: SchemaType.AVRO, schema: '{"type":"record","name":"shop.Address","fields":[]}' }
  await registry.register(address, { subject: 'address' })
  const customer = {
    type: SchemaType.AVRO,
    schema: '{"type":"record","name":"shop.Customer","fields":[{"name":"a","type":"shop.Address"}]}',
    references: [{ name: 'shop.Address', subject: 'address', version: 1 }],
  }
  const { id: outer } = await registry.register(customer, { subject: 'customer' })
  const bytes = await registry.encode(outer, { a: {} })
  assert.strictEqual(JSON.stringify(await new SchemaRegistry({ host }).decode(bytes)), '{"a":{}}')
  console.log('all well')
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
