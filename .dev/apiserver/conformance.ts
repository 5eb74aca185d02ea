// What the conformance tests share. With CONFORMANCE_KUBECONFIG they run against that cluster in place of the embedded
// API server (in their own namespaces; its node needs the image docker.io/local/busybox:1): a real server judges ours.
import { afterAll, beforeAll, expect, setDefaultTimeout } from "bun:test"
import { KubeConfig } from "@kubernetes/client-node"
import { type ApiServer, startApiServer } from "./http.ts"
import { type Attempt, type Rule, SCRIPT } from "./model.ts"

// biome-ignore lint/suspicious/noExplicitAny: a body is whatever the server says
export type Any = Record<string, any>
export const real = process.env.CONFORMANCE_KUBECONFIG
setDefaultTimeout(30_000)
export const ns = `conformance-${Date.now().toString(36)}${Math.floor(Math.random() * 1296).toString(36)}`
/** The embedded server; undefined where a real cluster is tested. */
export let server: ApiServer
export let url = ""
let tls: Bun.TLSOptions = {}
export const tokens: Record<string, string> = {}

export interface Reply {
  status: number
  body: Any
  headers: Headers
}
export async function call(
  method: string,
  path: string,
  body?: unknown,
  { type = "application/json", user = "", accept = "" } = {},
): Promise<Reply> {
  const token = user ? tokens[user] : real ? undefined : "admin"
  const headers = {
    "content-type": type,
    ...(accept && { accept }),
    ...(token && { authorization: `Bearer ${token}` }),
  }
  const init = {
    method,
    headers,
    tls: user ? { ca: tls.ca } : tls,
    ...(body !== undefined && { body: JSON.stringify(body) }),
  }
  const res = await fetch(url + path, init as RequestInit)
  const text = await res.text()
  return {
    status: res.status,
    headers: res.headers,
    body: res.headers.get("content-type")?.includes("json") ? JSON.parse(text) : text,
  }
}
export const jobsOf = (namespace: string) => `/apis/batch/v1/namespaces/${namespace}/jobs`
export const JOBS = jobsOf(ns)
export const PODS = `/api/v1/namespaces/${ns}/pods`
export const MERGE = { type: "application/merge-patch+json" }
export const get = async (path: string) => (await call("GET", path)).body
export const podsOf = async (job: string): Promise<Any[]> =>
  (await get(`${PODS}?labelSelector=job-name%3D${job}`)).items
/** Looks again and again until there is something. */
export async function until<T>(what: string, look: () => Promise<T | undefined | false>): Promise<T> {
  for (const end = Date.now() + 25_000; Date.now() < end; await Bun.sleep(real ? 100 : 5)) {
    const seen = await look()
    if (seen) return seen
  }
  throw new Error(`never seen: ${what}`)
}
export const has = (job: Any, type: string) =>
  job.status?.conditions?.some((c: Any) => c.type === type && c.status === "True")
export const reach = (name: string, type: string): Promise<Any> =>
  until(`${name} ${type}`, async () => {
    const job = await get(`${JOBS}/${name}`)
    return has(job, type) && job
  })
export const gone = (path: string) => until(`${path} gone`, async () => (await call("GET", path)).status === 404)

/** A Job whose containers do the same by script and on a real node. */
export interface Wanted {
  attempts?: Attempt[]
  spec?: Any
  pod?: Any
  metadata?: Any
}
/** What a container does on a real node. */
export function shell(name: string, attempt: Attempt | undefined): string[] {
  const { runMs, log = "", exitCode = 0 } = { runMs: attempt?.runMs, ...attempt?.containers?.[name] }
  const play = `printf '%s' '${log}'; sleep ${runMs === undefined ? 1000 : runMs / 1000}; exit ${exitCode}`
  return ["sh", "-c", `trap 'exit 143' TERM; ${runMs === undefined ? "sleep 1000 & wait" : play}`]
}
export function jobOf(name: string, { attempts, spec, pod, metadata }: Wanted = {}): Any {
  const container = (n: string) => ({
    name: n,
    image: "docker.io/local/busybox:1",
    imagePullPolicy: "Never",
    command: shell(n, attempts?.[0]),
  })
  const template = {
    metadata: { ...(attempts && { annotations: { [SCRIPT]: JSON.stringify(attempts) } }) },
    spec: { restartPolicy: "Never", terminationGracePeriodSeconds: 5, containers: [container("main")], ...pod },
  }
  return { apiVersion: "batch/v1", kind: "Job", metadata: { name, ...metadata }, spec: { ...spec, template } }
}
export const create = (name: string, wanted?: Wanted) => call("POST", JOBS, jobOf(name, wanted))
export const suspended = (name: string, metadata: Any = {}) => create(name, { spec: { suspend: true }, metadata })

export async function* lines(path: string): AsyncGenerator<Any> {
  const res = await fetch(url + path, { headers: real ? {} : { authorization: "Bearer admin" }, tls } as RequestInit)
  let rest = ""
  for await (const chunk of res.body as unknown as AsyncIterable<Uint8Array>) {
    const parts = (rest + new TextDecoder().decode(chunk)).split("\n")
    rest = parts.pop() ?? ""
    for (const line of parts) yield JSON.parse(line)
  }
}
/** The events of a watch from `since` on until one is `last`. */
export async function watch(path: string, query: string, last: (e: Any) => boolean): Promise<Any[]> {
  const seen: Any[] = []
  for await (const event of lines(`${path}?watch=true&timeoutSeconds=25&${query}`)) {
    seen.push(event)
    if (last(event)) break
  }
  return seen
}
export const now = async (path: string): Promise<string> => (await get(`${path}?limit=1`)).metadata.resourceVersion
export const clean = (o: Any): Any => {
  const { managedFields: _, ...metadata } = o.metadata
  return { ...o, metadata }
}

/** A user with one Role in the namespace; answers its name. */
export async function withRole(name: string, rules: Rule[]): Promise<string> {
  const user = `system:serviceaccount:${ns}:${name}`
  if (!real) {
    server.addUser(user, rules, { token: name, namespaces: [ns] })
    tokens[name] = name
    return user
  }
  const rbac = `/apis/rbac.authorization.k8s.io/v1/namespaces/${ns}`
  await call("POST", `/api/v1/namespaces/${ns}/serviceaccounts`, { metadata: { name } })
  await call("POST", `${rbac}/roles`, { metadata: { name }, rules })
  const subjects = [{ kind: "ServiceAccount", name, namespace: ns }]
  await call("POST", `${rbac}/rolebindings`, {
    metadata: { name },
    subjects,
    roleRef: { apiGroup: "rbac.authorization.k8s.io", kind: "Role", name },
  })
  const token = await call("POST", `/api/v1/namespaces/${ns}/serviceaccounts/${name}/token`, { spec: {} })
  tokens[name] = token.body.status.token
  await Bun.sleep(500)
  return user
}

/** Starts the embedded server, or reads the kubeconfig of the real one, for the tests of one file. */
export function useCluster(): void {
  beforeAll(async () => {
    if (real) {
      const kc = new KubeConfig()
      kc.loadFromFile(real)
      const [cluster, user] = [kc.getCurrentCluster()!, kc.getCurrentUser()!]
      const pem = (data: string | undefined) => Buffer.from(data ?? "", "base64").toString()
      url = cluster.server
      tls = { ca: pem(cluster.caData), cert: pem(user.certData), key: pem(user.keyData) }
    } else {
      server = await startApiServer()
      url = server.url
      tls = { ca: server.ca }
    }
    expect((await call("POST", "/api/v1/namespaces", { metadata: { name: ns } })).status).toBe(201)
    if (real)
      await until(
        "service account",
        async () => (await call("GET", `/api/v1/namespaces/${ns}/serviceaccounts/default`)).status === 200,
      )
  })
  afterAll(async () => {
    await call("DELETE", `/api/v1/namespaces/${ns}`)
    await server?.close()
  })
}
