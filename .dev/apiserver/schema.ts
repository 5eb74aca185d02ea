// Which fields an object may have, by the generated types of the client: what the server reports or drops as unknown.
import * as client from "@kubernetes/client-node"
import type { Json } from "./resources.ts"

type Attribute = { baseName: string; type: string }
const models = client as unknown as Record<string, { getAttributeTypeMap?(): Attribute[] } | undefined>
const TYPES: Record<string, string> = { jobs: "V1Job", pods: "V1Pod", configmaps: "V1ConfigMap" }
const fieldsByType = new Map<string, Map<string, string> | undefined>()

/** The fields of a type and their types; undefined for a type that is no object with fixed fields. */
function fieldsOf(type: string): Map<string, string> | undefined {
  if (fieldsByType.has(type)) return fieldsByType.get(type)
  const attributes = models[type]?.getAttributeTypeMap?.()
  const fields = attributes && new Map(attributes.map(({ baseName, type: of }) => [baseName, of]))
  fieldsByType.set(type, fields)
  return fields
}
/** The value without its unknown fields, whose paths go to `unknown`. */
function prune(value: unknown, type: string, path: string, unknown: string[]): unknown {
  if (typeof value !== "object" || value === null) return value
  const item = /^Array<(.+)>$/.exec(type)?.[1]
  if (Array.isArray(value)) return item ? value.map((v, i) => prune(v, item, `${path}[${i}]`, unknown)) : value
  const fields = fieldsOf(type)
  if (!fields) return value
  const known: Json = {}
  for (const [key, of] of Object.entries(value)) {
    const at = path ? `${path}.${key}` : key
    const field = fields.get(key)
    if (field) known[key] = prune(of, field, at, unknown)
    else unknown.push(at)
  }
  return known
}

/** The object as the server decodes it, and the paths of the fields that it does not know. */
export function decode(resource: string, body: unknown): { object: unknown; unknown: string[] } {
  const type = TYPES[resource]
  const unknown: string[] = []
  return { object: type ? prune(body, type, "", unknown) : body, unknown }
}
