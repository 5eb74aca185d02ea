// Updates and patches: what becomes of an object that somebody changes.
import type { Admission, Review } from "./admission.ts"
import { badRequest, conflict, type Request, statusError } from "./requests.ts"
import { isSameJson, type Json, type Meta, type Obj, withFinalizers } from "./resources.ts"
import { defaultJob, validateUpdate } from "./validation.ts"

function mergePatch(target: unknown, patch: unknown): unknown {
  if (typeof patch !== "object" || patch === null || Array.isArray(patch)) return patch
  const isObject = typeof target === "object" && target !== null && !Array.isArray(target)
  const out: Json = isObject ? { ...(target as Json) } : {}
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) delete out[key]
    else out[key] = mergePatch(out[key], value)
  }
  return out
}

interface Operation {
  op: string
  path: string
  value?: unknown
}
const rejectedPatch = () =>
  statusError(422, "Invalid", "the server rejected our request due to an error in our request", {})
function applyOperation(target: Json, { op, path, value }: Operation): void {
  const steps = path
    .split("/")
    .slice(1)
    .map((s) => s.replaceAll("~1", "/").replaceAll("~0", "~"))
  const last = steps.pop()!
  const at = steps.reduce<unknown>((o, step) => (o as Json | undefined)?.[step], target) as Json | undefined
  if (!at || (op !== "add" && !(last in at))) throw rejectedPatch()
  if (op === "test" && !isSameJson(at[last], value)) throw rejectedPatch()
  if (op === "remove") Array.isArray(at) ? at.splice(Number(last), 1) : delete at[last]
  if (op === "add" && Array.isArray(at)) at.splice(last === "-" ? at.length : Number(last), 0, value)
  else if (op === "add" || op === "replace") at[last] = value
}
function jsonPatch(target: Obj, operations: Operation[]): Json {
  const out = JSON.parse(JSON.stringify(target)) as Json
  for (const operation of operations) applyOperation(out, operation)
  return out
}

/** The object as a PUT or a PATCH leaves it, admitted and not yet stored; `prev` itself where nothing changes. */
export function updatedObject(r: Request, prev: Obj, admission: Admission): Obj {
  const isStatus = r.subresource === "status"
  const review: Review = {
    operation: "UPDATE",
    resource: isStatus ? `${r.resource}/status` : r.resource,
    object: requested(r, prev),
    prev,
    isDryRun: Boolean(r.query?.dryRun),
  }
  checkIdentity(r.resource, review.object, prev)
  const next = admission.mutate(review)
  const result = isStatus ? { ...prev, status: next.status } : keepServerFields(r.resource, next, prev)
  validateUpdate(r.resource, result, prev)
  admission.validate({ ...review, object: result })
  if (isSameJson(result, prev)) return prev
  const { generation } = prev.metadata
  if (isSameJson(result.spec, prev.spec) || !generation) return result
  return { ...result, metadata: { ...result.metadata, generation: generation + 1 } }
}
function requested(r: Request, prev: Obj): Obj {
  if (r.verb === "update") return r.body as Obj
  const type = r.contentType ?? "application/merge-patch+json"
  if (!/(merge-patch|json-patch|merge)\+json$/.test(type))
    throw statusError(415, "UnsupportedMediaType", "415: Unsupported Media Type", {})
  return (Array.isArray(r.body) ? jsonPatch(prev, r.body) : mergePatch(prev, r.body)) as Obj
}
function checkIdentity(resource: string, next: Obj, { metadata: was }: Obj): void {
  const { uid = was.uid, resourceVersion: rv = was.resourceVersion, name = was.name } = next.metadata ?? {}
  if (name !== was.name)
    throw badRequest(`the name of the object (${name}) does not match the name on the URL (${was.name})`)
  if (uid !== was.uid) {
    const key = `/registry/${resource}/${was.namespace}/${was.name}`
    const detail = `Precondition failed: UID in precondition: ${uid}, UID in object meta: ${was.uid}`
    const why = `StorageError: invalid object, Code: 4, Key: ${key}, ResourceVersion: 0, AdditionalErrorMsg: ${detail}`
    throw conflict(resource, resource, was.name, why)
  }
  if (rv !== was.resourceVersion) {
    const why = "the object has been modified; please apply your changes to the latest version and try again"
    throw conflict(resource, resource, was.name, why)
  }
}
function keepServerFields(resource: string, next: Obj, prev: Obj): Obj {
  const { creationTimestamp, deletionTimestamp, deletionGracePeriodSeconds, generation, resourceVersion } =
    prev.metadata
  const fixed = { creationTimestamp, deletionTimestamp, deletionGracePeriodSeconds, generation, resourceVersion }
  const present = Object.fromEntries(Object.entries(fixed).filter(([, value]) => value !== undefined))
  const { uid, name, namespace } = prev.metadata
  const metadata = { ...next.metadata, uid, name, namespace, ...present } as Meta
  const { kind, apiVersion, status } = prev
  const result: Obj = { ...next, kind, apiVersion, metadata, ...("status" in prev && { status }) }
  const complete = resource === "jobs" ? defaultJob(result) : result
  return metadata.finalizers?.length ? complete : withFinalizers(complete, [])
}
