// `bun run demo --dashboard`: the real operator and the real dashboard against the embedded API server, with Jobs that
// have a past. One of them fails and comes back again and again. Until Ctrl-C.
import { mkdtemp, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import type { Cause } from "../operator.ts"
import { failedStatus, putRecord } from "./apiserver/history.ts"
import { type ApiServer, startApiServer } from "./apiserver/http.ts"
import { FAST, SCRIPT } from "./apiserver/model.ts"
import { OPERATOR_ROLE } from "./apiserver/roles.ts"

const NAMESPACE = "flickr-downloader"
const PREFIX = "flickr-immich-k8s-sync-operator/"
const MINUTE = 60_000
const HOUR = 60 * MINUTE

export const DEMO_SETTINGS = {
  NAMESPACE,
  JOB_SELECTOR: "restart=true",
  RESTART_RULES: "exit:2=never,exit:3=1h..6h,oom=10m..2h,evicted=1m,deadline=2h",
  MAX_RESTARTS: "6",
}

const LOGS: Record<string, string[]> = {
  "exit:3": [
    "12:00:04 signing in as user 4711",
    "12:00:05 9,000 photos, 3,600 are here already",
    "12:31:40 fetching photo 3601 of 9000",
    "12:31:41 HTTP 429: Too Many Requests; api_key=*** is over its limit",
    "12:31:41 giving up for now",
  ],
  "exit:2": ["signing in as user 4712", "HTTP 403: this account is closed", "nothing can be fetched"],
  oom: ["building thumbnails for 812 photos", "allocating 1.9 GiB"],
  deadline: ["waiting for the network", "still waiting for the network"],
  evicted: ["fetching photo 17 of 240"],
}

/** A past, as hours ago that it began and failed, with the cause. The last one is that of the Job as it stands. */
type Story = {
  name: string
  past?: [from: number, to: number, cause: Cause][]
  status: (past: [number, number, Cause] | undefined) => object
  annotations?: Record<string, string>
  suspend?: boolean
}
const ago = (hours: number) => Date.now() - hours * HOUR
const iso = (at: number) => `${new Date(at).toISOString().slice(0, 19)}Z`
const failed = (past?: [number, number, Cause]) =>
  past ? failedStatus(ago(past[0]), ago(past[1]), past[2] === "deadline" ? "DeadlineExceeded" : undefined) : {}
const running = (hours: number) => () => ({ startTime: iso(ago(hours)), active: 1 })
const done = (from: number, to: number) => () => ({
  startTime: iso(ago(from)),
  completionTime: iso(ago(to)),
  succeeded: 1,
  conditions: [{ type: "Complete", status: "True", lastTransitionTime: iso(ago(to)) }],
})
const every = (hours: number, count: number, runs: number, cause: Cause, last = hours): [number, number, Cause][] =>
  Array.from({ length: count }, (_, i) => {
    const at = last + hours * (count - 1 - i)
    return [at + runs * (0.7 + 0.3 * Math.sin(i * 2.3) ** 2), at, cause]
  })

const STORIES: Story[] = [
  {
    name: "album-archive",
    past: every(5.2, 4, 0.4, "exit:2", 1.6),
    status: failed,
    annotations: { [`${PREFIX}max-restarts`]: "3" },
  },
  { name: "photos-amber", past: [...every(3.9, 6, 1.3, "exit:3", 0.3)], status: failed },
  { name: "photos-birch", past: [...every(30, 5, 2, "oom", 8), [1.9, 0.06, "oom"]], status: failed },
  { name: "photos-cedar", past: every(27, 5, 4, "deadline", 1.2), status: failed },
  { name: "photos-dune", past: every(11, 3, 2.5, "exit:3", 4), status: running(2.4) },
  { name: "photos-elder", past: every(52, 6, 5, "evicted", 9), status: running(7.7) },
  { name: "photos-fern", past: every(19, 4, 1, "exit:1", 26), status: done(21, 13) },
  { name: "photos-grove", status: running(5.5) },
  { name: "photos-heath", past: [[15, 12.5, "unknown"]], status: done(11.5, 3.2) },
  { name: "photos-iris", status: done(16, 9) },
  {
    name: "thumbnails",
    past: every(6.5, 3, 0.8, "oom", 3.1),
    status: failed,
    annotations: { [`${PREFIX}paused`]: "true" },
  },
  { name: "videos", status: () => ({}), suspend: true },
]

/** Writes Jobs that have a past, and one that fails each half minute. */
export function putDemoJobs({ model }: ApiServer): void {
  model.put({ kind: "Namespace", metadata: { name: NAMESPACE } })
  for (const { name, past = [], status, annotations, suspend = false } of STORIES) {
    const restarts = past.length > 0 ? { [`${PREFIX}restarts`]: String(past.length - 1) } : {}
    const script = JSON.stringify([{ containers: { download: { log: "fetching photos" } } }])
    const job = model.put({
      kind: "Job",
      metadata: {
        namespace: NAMESPACE,
        name,
        labels: { restart: "true" },
        annotations: { ...restarts, ...annotations },
      },
      spec: {
        suspend,
        backoffLimit: 0,
        template: {
          metadata: { annotations: { [SCRIPT]: script } },
          spec: { restartPolicy: "Never", containers: [{ name: "download", image: "example.com/flickr-download" }] },
        },
      },
      status: status(past.at(-1)),
    })
    past.forEach(([from, to, cause], i) => {
      const run = { startedAt: ago(from), failedAt: ago(to), cause, log: LOGS[cause] ?? [], restarts: i }
      const isLast = i === past.length - 1 && status === failed
      putRecord(model, NAMESPACE, name, run, isLast ? job.metadata.uid : undefined)
    })
  }
  const restless = [{ runMs: 20_000, containers: { download: { exitCode: 1, log: "connection reset by peer" } } }]
  model.request({
    verb: "create",
    resource: "jobs",
    group: "batch",
    namespace: NAMESPACE,
    body: {
      metadata: { name: "restless", labels: { restart: "true" }, annotations: { [`${PREFIX}restart-delay`]: "10s" } },
      spec: {
        backoffLimit: 0,
        template: {
          metadata: { annotations: { [SCRIPT]: JSON.stringify(restless) } },
          spec: { restartPolicy: "Never", containers: [{ name: "download", image: "example.com/flickr-download" }] },
        },
      },
    },
  })
}

/** Runs the demo until a signal. */
export async function demoDashboard(): Promise<void> {
  const server = await startApiServer({ ...FAST, batchMs: 200, startMs: 200, removeMs: 200, attemptsPer: "name" })
  server.addUser("operator", OPERATOR_ROLE)
  putDemoJobs(server)
  const home = await mkdtemp(join(tmpdir(), "demo-"))
  const program = join(import.meta.dir, "../operator.ts")
  const { DISPLAY = "", WAYLAND_DISPLAY = "", PATH = "" } = process.env
  const display = { ...(DISPLAY && { DISPLAY }), ...(WAYLAND_DISPLAY && { WAYLAND_DISPLAY }) }
  const run = (args: string[], user: string, output: "inherit" | "ignore") =>
    Bun.spawn([process.execPath, program, ...args], {
      env: {
        PATH,
        HOME: home,
        ...display,
        KUBECONFIG: server.writeKubeconfig(join(home, user), { user }),
        ...DEMO_SETTINGS,
      },
      stdio: ["ignore", output, output],
    })
  const operator = run([], "operator", "ignore")
  while (!server.calls.some(({ verb, resource }) => verb === "create" && resource === "configmaps")) await Bun.sleep(50)
  const options = process.argv.slice(2).filter((option) => option !== "--dashboard")
  const dashboard = run(["dashboard", ...options], "admin", "inherit")
  for (const signal of ["SIGINT", "SIGTERM"] as const)
    process.on(signal, () => {
      for (const child of [operator, dashboard]) child.kill("SIGTERM")
    })
  const code = await dashboard.exited
  operator.kill("SIGTERM")
  await operator.exited
  await server.close()
  await rm(home, { recursive: true })
  process.exit(code)
}
