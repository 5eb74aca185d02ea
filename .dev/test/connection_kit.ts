// What the tests of the connection and of the program share: real HTTPS servers with throw-away CAs on 127.0.0.1 that
// answer, or misbehave, as a test wants, and kubeconfigs that lead to them.
import { afterAll, afterEach, beforeAll, jest, setSystemTime } from "bun:test"
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import type { ServerResponse } from "node:http"
import { join } from "node:path"
import { type Cluster, connect, findSource } from "../../operator.ts"
import { base64, endings, folder, type Handler, type Served, trusted } from "./https_server.ts"

export * from "./https_server.ts"
export const never = new AbortController().signal

/** After each test, clocks, environment and servers are as before. */
export function tidyUp(): void {
  const environment = { ...process.env }
  beforeAll(() => void mkdirSync(folder, { recursive: true }))
  afterEach(async () => {
    jest.useRealTimers()
    setSystemTime()
    for (const name of ["HTTPS_PROXY", "NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"]) {
      delete process.env[name]
      if (environment[name] !== undefined) process.env[name] = environment[name]
    }
    for (const end of endings.splice(0).reverse()) await end()
  })
  afterAll(() => rmSync(folder, { recursive: true, force: true }))
}

export const status = (code: number, reason: string, details = {}) => ({
  kind: "Status",
  status: "Failure",
  code,
  reason,
  message: "no",
  details,
})
export const refuse = (response: ServerResponse, code: number, reason: string, headers: Record<string, string> = {}) =>
  void response.writeHead(code, headers).end(JSON.stringify(status(code, reason)))
export const hang = () => undefined
export const job = (resourceVersion = "1", more: object = {}, uid = "U1") => ({
  metadata: {
    name: "load-a",
    namespace: "demo",
    uid,
    resourceVersion,
    creationTimestamp: "2026-03-01T00:00:00Z",
    ...more,
  },
  spec: { template: { metadata: {}, spec: { containers: [{ name: "worker" }] } } },
  status: {},
})
export const failed = (resourceVersion = "1", more: object = {}) => ({
  ...job(resourceVersion, more),
  status: {
    conditions: [
      { type: "Failed", status: "True", reason: "BackoffLimitExceeded", lastTransitionTime: "2026-03-01T00:00:00Z" },
    ],
  },
})
export const event = (type: string, object: object) => `${JSON.stringify({ type, object })}\n`
export const allRules = { verbs: ["*"], apiGroups: ["*"], resources: ["*"] }

/** A cluster where nothing happens, but for what `more` answers. */
export const quiet =
  (more: Handler = hang): Handler =>
  async (call, response) => {
    const answer = await more(call, response)
    if (answer !== undefined || response.headersSent) return answer
    if (call.line === "GET /version") return { gitVersion: "v1.35.1" }
    if (call.line.endsWith("selfsubjectrulesreviews"))
      return { status: { incomplete: false, resourceRules: [allRules] } }
    if (call.query.has("watch")) return void response.flushHeaders()
    if (call.line.endsWith("/log")) return "last words\n"
    if (/\/(jobs|pods)$/.test(call.line)) return { metadata: { resourceVersion: "1" }, items: [] }
    return job()
  }

let written = 0
/** Writes a file, and tells where. */
export function file(content: string | object, name = `file-${written++}`): string {
  writeFileSync(join(folder, name), typeof content === "string" ? content : JSON.stringify(content))
  return join(folder, name)
}

export const kubeconfigOf = (
  server: string,
  cluster: object = { "certificate-authority-data": base64(trusted.cert) },
  user: object = {},
) => ({
  "current-context": "here",
  clusters: [{ name: "home", cluster: { server, ...cluster } }],
  contexts: [{ name: "here", context: { cluster: "home", user: "me" } }],
  users: [{ name: "me", user }],
})
export const sourceOf = (...kubeconfig: Parameters<typeof kubeconfigOf>) =>
  findSource({ KUBECONFIG: file(kubeconfigOf(...kubeconfig)) })
export const connected = async (server: Served, cluster?: object, user: object = { token: "t0ken" }) =>
  connect(await sourceOf(server.address, cluster, user))

/** A plugin that prints a line of its file of credentials each time, the last one again and again. */
export function plugin(...credentials: object[]) {
  const wrapped = credentials.map((credential) => JSON.stringify({ kind: "ExecCredential", status: credential }))
  const [answers, runs] = [file(`${wrapped.join("\n")}\n`), file("")]
  const script = 'echo run >> "$1"; n=$(wc -l < "$1"); sed -n "$n p; $ p" "$0" | head -n 1'
  const exec = { apiVersion: "client.authentication.k8s.io/v1", command: "sh", args: ["-c", script, answers, runs] }
  return { user: { exec }, runs: () => readFileSync(runs, "utf8").split("\n").length - 1 }
}

export const DELETE = { uid: "U1", resourceVersion: "1", propagationPolicy: "Foreground" } as const
export const LOG = { lines: 20, previous: false }
/** All that the operator can ask. */
export const ASK: Record<string, (cluster: Cluster, signal: AbortSignal) => Promise<unknown>> = {
  version: (cluster, signal) => cluster.version(signal),
  rules: (cluster, signal) => cluster.rules("demo", signal),
  listJobs: (cluster, signal) => cluster.listJobs("demo", "", (job) => job, signal),
  getJob: (cluster, signal) => cluster.getJob("demo", "load-a", signal),
  createJob: (cluster, signal) => cluster.createJob("demo", job(), {}, signal),
  annotateJob: (cluster, signal) =>
    cluster.annotateJob({ namespace: "demo", name: "load-a", uid: "U1", resourceVersion: "1" }, { note: null }, signal),
  createEvent: (cluster, signal) => cluster.createEvent("demo", { reason: "Failed" }, signal),
  deleteJob: (cluster, signal) => cluster.deleteJob("demo", "load-a", DELETE, signal),
  listPods: (cluster, signal) => cluster.listPods("demo", "app=load", (pod) => pod, signal),
  findPod: (cluster, signal) => cluster.findPod("demo", "load-a-1", signal),
  readLog: (cluster, signal) => cluster.readLog("demo", "q1", "worker", LOG, signal),
  watch: (cluster, signal) => watched(cluster, signal),
}
export const everything = Object.keys(ASK)
export const endsWatches: Handler = ({ query }) => (query.has("watch") ? "" : undefined)
export const watched = (cluster: Cluster, signal = never, silenceMs = 60_000) =>
  Array.fromAsync(cluster.watch("demo", "jobs", { resourceVersion: "1", silenceMs }, signal))

/** How each verb ends: "done", or the message of its error. */
export async function askAll(cluster: Cluster, signal = never): Promise<Record<string, string>> {
  const one = async (verb: string) =>
    [
      verb,
      await ASK[verb]!(cluster, signal).then(
        () => "done",
        (error) => String(error.message),
      ),
    ] as const
  return Object.fromEntries(await Promise.all(everything.map(one)))
}
export const allAre = (text: unknown) =>
  Object.fromEntries(everything.map((verb) => [verb, text])) as Record<string, string>
export const errorOf = (promise: Promise<unknown>): Promise<Error> =>
  promise.then(
    () => new Error("it went well"),
    (error: Error) => error,
  )
/** Whether a process runs. One that nobody waits for stays as a zombie, as in a pod, where process 1 is no init. */
export function isAlive(pid: string): boolean {
  try {
    return !/^\d+ \(.*\) Z/.test(readFileSync(`/proc/${pid}/stat`, "utf8"))
  } catch {
    return false
  }
}
export const until = async (is: () => unknown, ms = 20_000) => {
  for (const end = performance.now() + ms; !is(); await new Promise(setImmediate))
    if (performance.now() > end) throw new Error(`not so: ${is}`)
}

/** Sends pieces until the other side has enough. */
export function flood(response: ServerResponse, piece: (n: number) => string): void {
  let [n, open] = [0, true]
  response.on("close", () => {
    open = false
  })
  response.socket?.on("close", () => {
    open = false
  })
  const more = () => {
    while (open && response.write(piece(n++)));
    if (open) response.once("drain", more)
  }
  more()
}
