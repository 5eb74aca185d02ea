// Label selectors and field selectors.
import type { V1LabelSelector } from "@kubernetes/client-node"
import { badRequest } from "./requests.ts"
import { type Json, KINDS, type Labels, type Obj } from "./resources.ts"

export type Matcher = (o: Obj) => boolean
const parsed = new Map<string, (labels: Labels) => boolean>()

/** Parses the text of a label selector. */
export function labelSelector(text: string): (labels: Labels) => boolean {
  const known = parsed.get(text)
  if (known) return known
  const tests = text.split(/,(?![^(]*\))/).map((part): ((l: Labels) => boolean) => {
    const m = /^\s*(!?)\s*([\w./-]+)\s*(?:(==?|!=)\s*([\w.-]*)|\s(in|notin)\s*\(([^)]*)\))?\s*$/.exec(part)
    if (!m || (m[1] && (m[3] || m[5])))
      throw badRequest(`unable to parse requirement: found '${part}', expected: identifier`)
    const [, not, key = "", equality, value = "", set, list = ""] = m
    if (equality) return equality === "!=" ? (l) => l[key] !== value : (l) => l[key] === value
    const values = list.split(",").map((v) => v.trim())
    if (set === "in") return (l) => key in l && values.includes(l[key]!)
    if (set === "notin") return (l) => !(key in l) || !values.includes(l[key]!)
    return not ? (l) => !(key in l) : (l) => key in l
  })
  const all = (labels: Labels) => tests.every((test) => test(labels))
  if (parsed.size > 1000) parsed.clear()
  parsed.set(text, all)
  return all
}

/** What a list or a watch selects with its query. */
export function matcher(resource: string, query: Record<string, string> = {}): Matcher {
  const tests: Matcher[] = []
  if (query.labelSelector) {
    const select = labelSelector(query.labelSelector)
    tests.push((o) => select(o.metadata.labels ?? {}))
  }
  for (const part of query.fieldSelector?.split(",") ?? []) {
    const [, path = "", op, value] = /^([^!=]+)(==?|!=)(.*)$/.exec(part) ?? []
    const { kind, fields = [] } = KINDS[resource]!
    if (!op || !["metadata.name", "metadata.namespace", ...fields].includes(path))
      throw badRequest(
        resource === "pods" ? `field label not supported: ${path}` : `field label "${path}" not supported for ${kind}`,
      )
    const steps = (path === "status.successful" ? "status.succeeded" : path).split(".")
    const absent = path === "status.successful" ? 0 : ""
    const read = (o: Obj) => String(steps.reduce<unknown>((at, step) => (at as Json | undefined)?.[step], o) ?? absent)
    tests.push((o) => (read(o) === value) === (op !== "!="))
  }
  return tests.length ? (o) => tests.every((test) => test(o)) : () => true
}

/** Whether the selector of a spec matches. */
export function selects(selector: V1LabelSelector | undefined, labels: Labels): boolean {
  const one = (e: { key: string; operator: string; values?: string[] }) => {
    const has = e.key in labels
    if (e.operator === "Exists" || e.operator === "DoesNotExist") return has === (e.operator === "Exists")
    return (has && (e.values ?? []).includes(labels[e.key]!)) === (e.operator === "In")
  }
  const equal = Object.entries(selector?.matchLabels ?? {}).every(([k, v]) => labels[k] === v)
  return equal && (selector?.matchExpressions ?? []).every(one)
}
