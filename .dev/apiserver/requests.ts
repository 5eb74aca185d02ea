// Requests to the embedded API server and its answers: the errors that it gives, and who may ask for what.
import { type Json, KINDS, type Obj } from "./resources.ts"

/** A request after routing and authentication. */
export interface Request {
  verb: "get" | "list" | "create" | "update" | "patch" | "delete" | "deletecollection" | "watch"
  resource: string
  group?: string
  namespace?: string
  name?: string
  subresource?: string
  query?: Record<string, string>
  body?: unknown
  contentType?: string
  /** Without a user, or with one that the model does not know, everything is allowed. */
  user?: string
}
export interface Answer {
  status: number
  body: unknown
  warnings?: string[]
}
export interface WatchEvent {
  type: "ADDED" | "MODIFIED" | "DELETED" | "BOOKMARK" | "ERROR"
  object: Obj
}
/** An open watch. */
export interface Watching extends Answer {
  close(): void
}

// ---- Errors

/** Thrown where the server answers with an error. */
export class StatusError {
  constructor(readonly answer: Answer) {}
}
export interface Cause {
  reason: string
  message: string
  field: string
}
/** The body of an error. */
export function failure(code: number, reason: string | undefined, message: string, details?: Json): Json {
  const extra = { ...(reason && { reason }), ...(details && { details }), code }
  return { kind: "Status", apiVersion: "v1", metadata: {}, status: "Failure", message, ...extra }
}
export const statusError = (code: number, reason: string | undefined, message: string, details?: Json) =>
  new StatusError({ status: code, body: failure(code, reason, message, details) })

/** As in "jobs.batch". */
export const qualified = (name: string, resource: string) =>
  KINDS[resource]?.group ? `${name}.${KINDS[resource].group}` : name
export const detailsOf = (resource: string, name: string | undefined, kind = resource): Json => ({
  ...(name && { name }),
  ...(KINDS[resource]?.group && { group: KINDS[resource].group }),
  kind,
})
export const notFound = (resource: string, name: string) =>
  statusError(404, "NotFound", `${qualified(resource, resource)} "${name}" not found`, detailsOf(resource, name))
export function invalid(resource: string, name: string, causes: Cause[]): StatusError {
  const { kind } = KINDS[resource]!
  const all = [...new Set(causes.map((c) => `${c.field}: ${c.message}`))]
  const listed = all.length > 1 ? `[${all.join(", ")}]` : all[0]
  const message = `${qualified(kind, resource)} "${name}" is invalid: ${listed}`
  return statusError(422, "Invalid", message, { ...detailsOf(resource, name, kind), causes })
}
export const invalidValue = (field: string, value: unknown, why: string): Cause => ({
  reason: "FieldValueInvalid",
  message: `Invalid value: ${JSON.stringify(value ?? null)}: ${why}`,
  field,
})
export const required = (field: string, why?: string): Cause => ({
  reason: "FieldValueRequired",
  message: `Required value${why ? `: ${why}` : ""}`,
  field,
})
export const forbiddenField = (field: string, why: string): Cause => ({
  reason: "FieldValueForbidden",
  message: `Forbidden: ${why}`,
  field,
})
export const tooLong = (field: string, most: number): Cause => ({
  reason: "FieldValueTooLong",
  message: `Too long: may not be more than ${most} bytes`,
  field,
})
export const forbidden = (resource: string, name: string | undefined, why: string, causes?: Cause[]) =>
  statusError(403, "Forbidden", `${qualified(resource, resource)}${name ? ` "${name}"` : ""} is forbidden: ${why}`, {
    ...detailsOf(resource, name),
    ...(causes && { causes }),
  })
export const conflict = (kind: string, resource: string, name: string, why: string) =>
  statusError(409, "Conflict", `Operation cannot be fulfilled on ${qualified(kind, resource)} "${name}": ${why}`, {
    ...detailsOf(resource, name, kind),
  })
export const badRequest = (message: string) => statusError(400, "BadRequest", message)

// ---- Authorization

/** A rule of a Role. */
export interface Rule {
  verbs: string[]
  apiGroups?: string[]
  resources?: string[]
  resourceNames?: string[]
}
/** Rules hold in every namespace, or only in the named ones, as a Role's do. */
export interface User {
  rules: Rule[]
  namespaces?: string[]
  incomplete?: boolean
}

export function allows(rules: Rule[], r: Request): boolean {
  const resource = r.subresource ? `${r.resource}/${r.subresource}` : r.resource
  const group = r.group ?? KINDS[r.resource]?.group ?? ""
  const name = r.name ?? /^metadata\.name==?([^,]+)$/.exec(r.query?.fieldSelector ?? "")?.[1]
  const has = (list: string[] | undefined, ...wanted: string[]) =>
    list?.some((x) => x === "*" || wanted.includes(x)) ?? false
  return rules.some(
    (rule) =>
      has(rule.verbs, r.verb) &&
      has(rule.apiGroups, group) &&
      has(rule.resources, resource, r.subresource ? `*/${r.subresource}` : "*") &&
      (!rule.resourceNames?.length || (name !== undefined && rule.resourceNames.includes(name))),
  )
}
/** The body of a SelfSubjectRulesReview of `user` in `namespace`. */
export function rulesReview(user: User | undefined, namespace: string): Json {
  const everything = [{ verbs: ["*"], apiGroups: ["*"], resources: ["*"] }]
  const isHere = !user?.namespaces || user.namespaces.includes(namespace)
  const reviews = ["selfsubjectaccessreviews", "selfsubjectrulesreviews"]
  const basic = [
    { verbs: ["create"], apiGroups: ["authorization.k8s.io"], resources: reviews },
    { verbs: ["create"], apiGroups: ["authentication.k8s.io"], resources: ["selfsubjectreviews"] },
  ]
  const paths = ["/healthz", "/livez", "/readyz", "/version", "/version/"]
  const status = {
    resourceRules: [...basic, ...(isHere ? (user?.rules ?? everything) : [])],
    nonResourceRules: [{ verbs: ["get"], nonResourceURLs: paths }],
    incomplete: user?.incomplete ?? false,
  }
  const kind = { kind: "SelfSubjectRulesReview", apiVersion: "authorization.k8s.io/v1" }
  return { ...kind, metadata: {}, spec: {}, status }
}
