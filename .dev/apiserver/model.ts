// What an API server, a Job controller, a garbage collector and a kubelet do, as far as Jobs need it: in memory,
// without HTTP, timers or a clock of its own. Behind HTTPS it is the embedded server; a simulation drives it directly.
import type { V1PodSpec, V1PodStatus } from "@kubernetes/client-node"
import { Admission, admitNamespace, type Review } from "./admission.ts"
import { deleteObject, type Propagation } from "./deletion.ts"
import { GarbageCollector, TtlController } from "./garbage_collector.ts"
import { JobController } from "./job_controller.ts"
import { Kubelet } from "./kubelet.ts"
import {
  type Answer,
  allows,
  badRequest,
  conflict,
  detailsOf,
  failure,
  forbidden,
  notFound,
  qualified,
  type Request,
  rulesReview,
  StatusError,
  statusError,
  type User,
  type WatchEvent,
  type Watching,
} from "./requests.ts"
import {
  groupVersion,
  type Job,
  type Json,
  KINDS,
  type Meta,
  type Obj,
  type Pod,
  renameEvent,
  timestamp,
  type Wire,
} from "./resources.ts"
import { decode } from "./schema.ts"
import { matcher } from "./selectors.ts"
import { bookmarkAt, type Due, Store, type StoreOptions, type Watcher } from "./store.ts"
import { updatedObject } from "./update.ts"
import { defaultJob, defaultPodSpec, validate } from "./validation.ts"

export type { Denial, Operation, Policy, Review, Webhook } from "./admission.ts"
export { type Attempt, SCRIPT } from "./kubelet.ts"
export {
  type Answer,
  failure,
  type Request,
  type Rule,
  type User,
  type WatchEvent,
  type Watching,
} from "./requests.ts"
export type { Change, Job, Obj, Pod } from "./resources.ts"
export { FAST, REAL, type Timing } from "./store.ts"

export interface ModelOptions extends StoreOptions {
  /** What a script's attempts are counted by: the Job's name, across restarts, or its uid. */
  attemptsPer?: "name" | "uid"
  /** The feature gate: where it is off, spec.managedBy is dropped without a word. */
  hasManagedBy?: boolean
}

export class Model {
  readonly store: Store
  readonly admission: Admission
  /** Users with limited rights; everyone else may do everything. */
  readonly users = new Map<string, User>()
  private readonly jobController: JobController
  private readonly kubelet: Kubelet

  constructor(private readonly options: ModelOptions) {
    this.store = new Store(options)
    this.admission = new Admission(this.store)
    new GarbageCollector(this.store, this.admission)
    this.jobController = new JobController(this.store)
    this.kubelet = new Kubelet(this.store, options.attemptsPer)
    new TtlController(this.store, this.admission)
    this.put({ kind: "Namespace", metadata: { name: "default" } })
  }
  get objects(): Record<string, Map<string, Obj>> {
    return this.store.objects
  }
  /** The resourceVersion of the last write. */
  get rv(): number {
    return this.store.rv
  }
  /** Does what is due by now; answers when the next thing is. */
  tick(): number | undefined {
    return this.store.tick()
  }
  job(namespace: string, name: string): Job | undefined {
    return this.store.job(namespace, name)
  }
  pods(namespace?: string): Pod[] {
    return this.store.pods(namespace)
  }

  // ---- For tests

  /** Stores an object as it is, past admission and validation; a new one gets what is missing in its metadata. */
  put(given: { kind: string; metadata: Partial<Meta>; [field: string]: unknown }): Obj {
    const [resource, kind] = Object.entries(KINDS).find(([, k]) => k.kind === given.kind)!
    const creationTimestamp = timestamp(this.store.now())
    const metadata = { uid: this.store.newUid(), creationTimestamp, ...given.metadata } as Meta
    if (!kind.cluster) metadata.namespace ??= "default"
    const bare = { ...given, apiVersion: groupVersion(kind), metadata } as Obj
    const object = resource === "jobs" ? defaultJob(bare) : resource === "pods" ? { status: {}, ...bare } : bare
    const prev = this.store.find(resource, metadata.namespace ?? "", metadata.name)
    if (resource === "pods" && !prev) this.kubelet.ignore(metadata.uid)
    const stored = this.store.write(resource, object, prev)
    this.store.flush()
    return stored
  }
  setStatus(resource: string, namespace: string, name: string, status: Json): void {
    const prev = this.store.find(resource, namespace, name)!
    this.store.save(resource, { ...prev, status: { ...(prev.status as Json), ...status } }, prev)
    this.store.flush()
  }
  setPodStatus(namespace: string, name: string, status: Partial<Wire<V1PodStatus>>): void {
    this.setStatus("pods", namespace, name, status)
  }
  /** The containers of a pod are gone with their logs: the log endpoint answers 200 with an error sentence. */
  loseLogs(namespace: string, pod: string): void {
    this.kubelet.loseLogs(this.store.find("pods", namespace, pod)?.metadata.uid ?? "")
  }
  /** A dead node starts, ends and removes nothing until it is back. */
  node(isUp: boolean): void {
    this.kubelet.setUp(isUp)
    this.store.flush()
  }
  /** The next Job of this name gets no pod until it is edited. */
  stall(namespace: string, name: string): void {
    this.jobController.stall(namespace, name)
  }
  /** Forgets changes: older resourceVersions and continue tokens answer 410. */
  compact(keep = 0): void {
    this.store.compact(keep)
  }

  // ---- Requests

  request(r: Request): Answer {
    try {
      this.authorize(r)
      return this.route(r)
    } catch (e) {
      if (e instanceof StatusError) return e.answer
      throw e
    } finally {
      this.store.flush()
    }
  }
  private authorize(r: Request): void {
    const user = this.users.get(r.user ?? "")
    if (!user || ["selfsubjectrulesreviews", "version"].includes(r.resource)) return
    if ((!user.namespaces || user.namespaces.includes(r.namespace ?? "")) && allows(user.rules, r)) return
    const what = r.subresource ? `${r.resource}/${r.subresource}` : r.resource
    const group = r.group ?? KINDS[r.resource]?.group ?? ""
    const where = r.namespace ? `in the namespace "${r.namespace}"` : "at the cluster scope"
    const why = `User "${r.user}" cannot ${r.verb} resource "${what}" in API group "${group}" ${where}`
    throw forbidden(r.resource, r.name, why)
  }
  private route(r: Request): Answer {
    if (r.resource === "version") return { status: 200, body: { major: "1", minor: "35", gitVersion: "v1.35.1" } }
    if (r.resource === "selfsubjectrulesreviews") return this.review(r)
    if (!KINDS[r.resource]) throw statusError(404, "NotFound", "the server could not find the requested resource", {})
    if (r.resource !== "events" || r.group !== "events.k8s.io") return this.serve(r)
    const answer = this.serve(r.body ? { ...r, body: renameEvent(r.body as Json, 1) } : r)
    const body = answer.body as Json
    return body.kind === "Event" ? { ...answer, body: renameEvent(body, 0) } : answer
  }
  private review(r: Request): Answer {
    const namespace = (r.body as { spec?: { namespace?: string } } | undefined)?.spec?.namespace
    if (!namespace) throw badRequest("no namespace on request")
    return { status: 201, body: rulesReview(this.users.get(r.user ?? ""), namespace) }
  }
  private serve(r: Request): Answer {
    if (r.verb === "list") return { status: 200, body: this.list(r) }
    if (r.verb === "create") return this.create(r)
    if (r.verb === "deletecollection") return this.deleteAll(r)
    const found = this.store.find(r.resource, KINDS[r.resource]!.cluster ? "" : (r.namespace ?? ""), r.name ?? "")
    if (!found) throw notFound(r.resource, r.name ?? "")
    if (r.subresource === "log") return { status: 200, body: this.kubelet.log(found as Pod, r.query ?? {}) }
    if (r.verb === "get") return { status: 200, body: found }
    if (r.verb === "delete") return this.delete(r, found)
    const next = updatedObject(r, found, this.admission)
    if (next === found || r.query?.dryRun) return { status: 200, body: next }
    return { status: 200, body: this.store.save(r.resource, next, found) }
  }

  private list(r: Request): Json {
    const { limit, continue: token, resourceVersion, labelSelector: labels, fieldSelector: fields } = r.query ?? {}
    for (const n of [limit, resourceVersion])
      if (n && !/^\d+$/.test(n)) throw badRequest(`strconv.ParseInt: parsing "${n}": invalid syntax`)
    if (Number(resourceVersion ?? 0) > this.store.rv) throw tooLarge(Number(resourceVersion), this.store.rv)
    const { rv, start } = token ? this.resume(token) : { rv: this.store.rv, start: "" }
    const matches = matcher(r.resource, r.query)
    const keys = [...this.store.snapshot(r.resource, rv)]
      .filter(([key, o]) => key > start && (!r.namespace || o.metadata.namespace === r.namespace) && matches(o))
      .sort(([a], [b]) => (a < b ? -1 : 1))
    // A list "from the cache" ignores its limit.
    const page = limit && resourceVersion !== "0" ? keys.slice(0, Number(limit)) : keys
    const left = keys.length - page.length
    const metadata = {
      resourceVersion: String(rv),
      ...(left > 0 && { continue: encodeToken(rv, page.at(-1)![0]) }),
      ...(left > 0 && !labels && !fields && { remainingItemCount: left }),
    }
    const kind = KINDS[r.resource]!
    const items = page.map(([, { kind: _, apiVersion: __, ...item }]) => item)
    return { kind: `${kind.kind}List`, apiVersion: groupVersion(kind), metadata, items }
  }
  private resume(token: string): { rv: number; start: string } {
    let read: { rv: number; start: string }
    try {
      read = JSON.parse(atob(token))
    } catch {
      throw badRequest("invalid continue token: continue key is not valid")
    }
    if (read.rv < 0) return { rv: this.store.rv, start: read.start }
    if (this.store.isKept(read.rv)) return read
    const body = { ...failure(410, "Expired", TOKEN_EXPIRED), metadata: { continue: encodeToken(-1, read.start) } }
    throw new StatusError({ status: 410, body })
  }

  /** As the API server does it: decode, mutate, complete, validate, admit, and only then look whether it exists. */
  private create(r: Request): Answer {
    const { resource } = r
    const isDryRun = Boolean(r.query?.dryRun)
    const { object: given, unknown } = decode(resource, r.body ?? {}) as { object: Obj; unknown: string[] }
    const fields = unknown.map((path) => `unknown field "${path}"`)
    const { fieldValidation = "Warn" } = r.query ?? {}
    if (fields.length && fieldValidation === "Strict") throw strictDecodingError(resource, fields)
    const review: Review = { operation: "CREATE", resource, object: this.inNamespace(r, given), isDryRun }
    const mutated = this.admission.mutate(review)
    const object = this.newObject(r, mutated)
    validate(resource, object)
    this.admission.validate({ ...review, object })
    if (mutated.metadata.resourceVersion && !isDryRun)
      throw statusError(500, undefined, "resourceVersion should not be set on objects to be created")
    const existing = this.store.find(resource, object.metadata.namespace ?? "", object.metadata.name)
    if (existing) throw alreadyExists(resource, existing, object)
    const body = isDryRun ? object : this.store.write(resource, object)
    return { status: 201, body, warnings: fieldValidation === "Warn" ? fields : [] }
  }
  /** The namespace of the path goes into the object, which must not name another one. */
  private inNamespace(r: Request, given: Obj): Obj {
    const { metadata = {} as Meta } = given
    if (KINDS[r.resource]!.cluster) return { ...given, metadata }
    const namespace = r.namespace ?? ""
    if (metadata.namespace && metadata.namespace !== namespace)
      throw badRequest("the namespace of the provided object does not match the namespace sent on the request")
    admitNamespace(this.store, r.resource, namespace, metadata.name)
    return { ...given, metadata: { ...metadata, namespace } }
  }
  /** The object that a create asks for, with what the server adds. */
  private newObject(r: Request, given: Obj): Obj {
    const kind = KINDS[r.resource]!
    const {
      resourceVersion: _,
      selfLink: _s,
      deletionTimestamp: _d,
      deletionGracePeriodSeconds: _g,
      ...meta
    } = given.metadata
    const name = meta.name || (meta.generateName ? `${meta.generateName.slice(0, 58)}${this.store.suffix()}` : "")
    const generation = r.resource === "jobs" || r.resource === "pods" ? { generation: 1 } : {}
    const uid = this.store.newUid()
    const own = { ...meta, name, uid, ...generation, creationTimestamp: timestamp(this.store.now()) } as Meta
    const object = { ...given, kind: kind.kind, apiVersion: groupVersion(kind), metadata: own } as Obj
    if (r.resource === "jobs") return defaultJob({ ...this.withoutDisabled(object), status: {} })
    if (r.resource === "namespaces")
      return { ...object, spec: { finalizers: ["kubernetes"] }, status: { phase: "Active" } }
    if (r.resource !== "pods") return object
    const status = { phase: "Pending", qosClass: "BestEffort" }
    return { ...object, spec: defaultPodSpec(object.spec as Wire<V1PodSpec>), status }
  }

  private withoutDisabled(job: Obj): Obj {
    if (this.options.hasManagedBy !== false) return job
    const { managedBy: _, ...spec } = (job.spec ?? {}) as Json
    return { ...job, spec }
  }

  private delete(r: Request, prev: Obj): Answer {
    const { resource } = r
    // A body makes the server ignore the options in the query, dryRun among them.
    const { gracePeriodSeconds: inQuery, ...query } = r.query ?? {}
    const options = (r.body ?? { ...query, ...(inQuery && { gracePeriodSeconds: Number(inQuery) }) }) as DeleteOptions
    checkPreconditions(resource, prev, options.preconditions)
    const policy = options.propagationPolicy
    if (policy && !["Foreground", "Background", "Orphan"].includes(policy)) throw unsupportedPolicy(policy)
    const warnings = !policy && resource === "jobs" && !r.query?.propagationPolicy ? [ORPHAN_WARNING] : []
    const dryRun = Boolean(options.dryRun?.length)
    this.admission.validate({ operation: "DELETE", resource, object: prev, isDryRun: dryRun })
    const graceSeconds = options.gracePeriodSeconds
    const left = deleteObject(this.store, resource, prev, { policy, graceSeconds, dryRun })
    const details = { ...detailsOf(resource, prev.metadata.name), uid: prev.metadata.uid }
    const success = { kind: "Status", apiVersion: "v1", metadata: {}, status: "Success", details }
    return { status: 200, body: left ?? success, warnings }
  }
  private deleteAll(r: Request): Answer {
    const list = this.list({ ...r, verb: "list" }) as { items: Obj[] }
    for (const { metadata } of list.items) {
      const found = this.store.find(r.resource, metadata.namespace ?? "", metadata.name)
      if (found) this.delete({ ...r, verb: "delete" }, found)
    }
    return { status: 200, body: list }
  }

  // ---- Watches

  watch(r: Omit<Request, "verb">, onEvent: (e: WatchEvent) => void, onEnd?: () => void): Watching {
    const request: Request = { ...r, verb: "watch" }
    try {
      this.authorize(request)
      return this.open(request, onEvent, onEnd)
    } catch (e) {
      if (e instanceof StatusError) return { ...e.answer, close() {} }
      throw e
    }
  }
  private open(r: Request, onEvent: (e: WatchEvent) => void, onEnd?: () => void): Watching {
    const { resource, namespace, query = {} } = r
    const { store } = this
    const since = parseVersion(query.resourceVersion)
    const matches = matcher(resource, query)
    const isRenamed = resource === "events" && r.group === "events.k8s.io"
    const dues: Due[] = []
    const close = () => {
      store.unsubscribe(watcher)
      for (const due of dues) due.run = undefined
    }
    const end = () => {
      close()
      onEnd?.()
    }
    const send = (type: WatchEvent["type"], object: Obj) =>
      onEvent({ type, object: isRenamed ? (renameEvent(object, 0) as Obj) : object })
    const watcher: Watcher = {
      resource,
      next: 0,
      expire: () => {
        onEvent({ type: "ERROR", object: failure(410, "Expired", store.tooOldMessage(since)) as Obj })
        end()
      },
      see: ({ type, object, prev, rv }) => {
        if (namespace && object.metadata.namespace !== namespace) return
        const isMatch = type !== "DELETED" && matches(object)
        const wasMatch = prev !== undefined && matches(prev)
        if (isMatch) send(wasMatch ? "MODIFIED" : "ADDED", object)
        // What leaves the selection is shown as it was, under the resourceVersion of the change.
        else if (wasMatch) send("DELETED", { ...prev!, metadata: { ...prev!.metadata, resourceVersion: String(rv) } })
      },
    }
    if (!since)
      for (const [, o] of [...store.objects[resource]!].sort(([a], [b]) => (a < b ? -1 : 1)))
        if ((!namespace || o.metadata.namespace === namespace) && matches(o)) send("ADDED", o)
    store.subscribe(watcher, since)
    if (store.isSubscribed(watcher)) {
      dues.push(...this.scheduleEnd(resource, query, send, end))
      store.flush()
    }
    return { status: 200, body: undefined, close }
  }
  /** A watch lasts its timeoutSeconds, or half an hour to an hour; bookmarks come every minute and at the end. */
  private scheduleEnd(
    resource: string,
    { timeoutSeconds, allowWatchBookmarks }: Record<string, string>,
    send: (type: "BOOKMARK", object: Obj) => void,
    end: () => void,
  ): Due[] {
    const { store } = this
    const lifeMs = timeoutSeconds ? Number(timeoutSeconds) * 1000 : (1800 + 1800 * store.random()) * 1000
    const dues = [store.after(lifeMs, end)]
    if (allowWatchBookmarks !== "true") return dues
    const bookmark = () => {
      store.flush()
      send("BOOKMARK", bookmarkAt(resource, store.rv))
    }
    for (let at = 60_000; at < lifeMs - 2000; at += 60_000) dues.push(store.after(at, bookmark))
    if (lifeMs > 2000) dues.push(store.after(lifeMs - 2000, bookmark))
    return dues
  }
}

function strictDecodingError(resource: string, fields: string[]): StatusError {
  const { kind, version } = KINDS[resource]!
  const why = `cannot be handled as a ${kind}: strict decoding error: ${fields.join(", ")}`
  return badRequest(`${kind} in version "${version}" ${why}`)
}
function alreadyExists(resource: string, existing: Obj, { metadata: { name, generateName } }: Obj): StatusError {
  const details = { ...detailsOf(resource, name), ...(generateName && { retryAfterSeconds: 1 }) }
  const prefix = existing.metadata.deletionTimestamp ? "object is being deleted: " : ""
  const suffix = generateName ? ", the server was not able to generate a unique name for the object" : ""
  const message = `${prefix}${qualified(resource, resource)} "${name}" already exists${suffix}`
  return statusError(409, "AlreadyExists", message, details)
}

interface DeleteOptions {
  propagationPolicy?: Propagation
  gracePeriodSeconds?: number
  dryRun?: string | string[]
  preconditions?: { uid?: string; resourceVersion?: string }
}
function checkPreconditions(resource: string, prev: Obj, wanted: DeleteOptions["preconditions"] = {}): void {
  const { kind } = KINDS[resource]!
  const { uid, resourceVersion, name } = prev.metadata
  if (wanted.uid && wanted.uid !== uid) {
    const differs = `the UID in the precondition (${wanted.uid}) does not match the UID in record (${uid})`
    throw conflict(kind, resource, name, `${differs}. The object might have been deleted and then recreated`)
  }
  if (wanted.resourceVersion && wanted.resourceVersion !== resourceVersion) {
    const record = `the ResourceVersion in record (${resourceVersion})`
    const differs = `the ResourceVersion in the precondition (${wanted.resourceVersion}) does not match ${record}`
    throw conflict(kind, resource, name, `${differs}. The object might have been modified`)
  }
}
function unsupportedPolicy(policy: string): StatusError {
  const message = `Unsupported value: "${policy}": supported values: "Foreground", "Background", "Orphan", "nil"`
  const causes = [{ reason: "FieldValueNotSupported", message, field: "propagationPolicy" }]
  const details = { group: "meta.k8s.io", kind: "DeleteOptions", causes }
  const text = `DeleteOptions.meta.k8s.io "" is invalid: propagationPolicy: ${message}`
  return statusError(422, "Invalid", text, details)
}
function parseVersion(text: string | undefined): number {
  const version = text ? Number(text) : 0
  if (!Number.isNaN(version)) return version
  const syntax = `strconv.ParseUint: parsing "${text}": invalid syntax`
  throw statusError(500, undefined, `resourceVersion: Invalid value: "${text}": ${syntax}`)
}
const encodeToken = (rv: number, start: string) =>
  btoa(JSON.stringify({ v: "meta.k8s.io/v1", rv, start })).replace(/=+$/, "")
const TOKEN_EXPIRED = [
  "The provided continue parameter is too old to display a consistent list result.",
  "You can start a new list without the continue parameter, or use the continue token in this response",
  "to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list",
  "- objects that were created, modified, or deleted between the time the first chunk was returned and now",
  "may show up in the list.",
].join(" ")
const ORPHAN_WARNING =
  "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them " +
  "or set propagationPolicy=Orphan to suppress this warning"
function tooLarge(wanted: number, current: number): StatusError {
  const causes = [{ reason: "ResourceVersionTooLarge", message: "Too large resource version" }]
  const message = `Timeout: Too large resource version: ${wanted}, current: ${current}`
  return statusError(504, "Timeout", message, { causes, retryAfterSeconds: 1 })
}
