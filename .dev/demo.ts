// `bun run demo`: the real operator, as its own process over HTTPS, against the embedded API server with four Jobs.
// Three fail in different ways and come back, one runs and is left alone. Ends by itself; exit code 0 if every failed
// Job was restarted. `bun run demo --dashboard [--no-open] [--port N]`: see demo_dashboard.ts.
import { mkdtemp, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { alignedRows } from "../operator.ts"
import { startApiServer } from "./apiserver/http.ts"
import { type Attempt, FAST, SCRIPT } from "./apiserver/model.ts"
import { OPERATOR_ROLE } from "./apiserver/roles.ts"

if (process.argv.includes("--dashboard")) await (await import("./demo_dashboard.ts")).demoDashboard()

const NAMESPACE = "flickr-downloader"
const LIMIT_MS = 28_000
const RESTARTS = "flickr-immich-k8s-sync-operator/restarts"

const log429 = [
  "signing in as alice",
  "fetching photo 3601 of 9000",
  "HTTP 429: Too Many Requests",
  "api_key=0123456789abcdef is over its limit",
].join("\n")
const fine: Attempt = { runMs: 600, containers: { download: { log: "all photos are here" } } }
const jobs: { name: string; story: string; script: Attempt[]; spec?: object; pod?: object }[] = [
  {
    name: "alice",
    story: "met the rate limit: exit code 3",
    script: [{ runMs: 900, containers: { download: { exitCode: 3, log: log429 } } }, fine],
  },
  {
    name: "bob",
    story: "was killed for memory",
    script: [
      { runMs: 1_200, containers: { download: { exitCode: 137, reason: "OOMKilled", log: "building thumbnails" } } },
      fine,
    ],
    pod: { restartPolicy: "OnFailure" },
  },
  {
    name: "carol",
    story: "ran into its deadline",
    script: [{ containers: { download: { log: "waiting for the network" } } }, fine],
    spec: { activeDeadlineSeconds: 2 },
  },
  {
    name: "dave",
    story: "runs, and is left alone",
    script: [{ containers: { download: { log: "photo 17 of 9000" } } }],
  },
]

const server = await startApiServer({ ...FAST, batchMs: 200, startMs: 200, removeMs: 200, attemptsPer: "name" })
server.addUser("operator", OPERATOR_ROLE)
server.model.put({ kind: "Namespace", metadata: { name: NAMESPACE } })
for (const { name, script, spec, pod } of jobs) {
  const template = {
    metadata: { annotations: { [SCRIPT]: JSON.stringify(script) } },
    spec: { restartPolicy: "Never", containers: [{ name: "download", image: "example.com/flickr-download" }], ...pod },
  }
  const body = {
    apiVersion: "batch/v1",
    kind: "Job",
    metadata: { name, labels: { restart: "true" } },
    spec: { backoffLimit: 0, ...spec, template },
  }
  const { status } = server.model.request({
    verb: "create",
    resource: "jobs",
    group: "batch",
    namespace: NAMESPACE,
    body,
  })
  if (status !== 201) throw new Error(`Job ${name} was not created: ${status}`)
}

const home = await mkdtemp(join(tmpdir(), "demo-"))
const environment = {
  KUBECONFIG: server.writeKubeconfig(home, { user: "operator" }),
  NAMESPACE,
  JOB_SELECTOR: "restart=true",
  RESTART_DELAY: "3",
  SKIP_DELAY_ON_OOM: "true",
}
const operator = Bun.spawn([process.execPath, join(import.meta.dir, "../operator.ts")], {
  env: { HOME: home, ...environment },
  stdin: "ignore",
  stdout: "inherit",
  stderr: "inherit",
})

const restartsOf = (name: string) => Number(server.model.job(NAMESPACE, name)?.metadata.annotations?.[RESTARTS] ?? 0)
const stateOf = (name: string) => {
  const conditions = server.model.job(NAMESPACE, name)?.status?.conditions ?? []
  return conditions.find(({ type }) => type === "Complete" || type === "Failed")?.type ?? "Running"
}
const failing = jobs.slice(0, 3)
const isDone = () => failing.every(({ name }) => restartsOf(name) > 0 && stateOf(name) === "Complete")
const endAt = Date.now() + LIMIT_MS
while (!isDone() && Date.now() < endAt && operator.exitCode === null) await Bun.sleep(100)

operator.kill("SIGTERM")
const code = await operator.exited
const rows = jobs.map(({ name, story }) => [name, story, String(restartsOf(name)), stateOf(name)])
console.log(`\n${alignedRows([["Job", "what happened", "restarts", "now"], ...rows]).join("\n")}`)
const isGood = isDone() && code === 0 && restartsOf("dave") === 0
console.log(
  isGood
    ? "Every failed Job came back, and the operator stopped cleanly."
    : `Something went wrong: exit code of the operator ${code}.`,
)
await server.close()
await rm(home, { recursive: true })
process.exit(isGood ? 0 : 1)
