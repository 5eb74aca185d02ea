// By hand: `bun .dev/bench/metrics.ts [JOBS]`. How long a scrape of /metrics takes with 1,000 Jobs of which each has
// failed and waits: over HTTP, 50 scrapes one after the other, from an Operator that has seen the Jobs on the embedded
// API server.
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import {
  answerHealth,
  connect,
  findSource,
  Metrics,
  Operator,
  readSettings,
  systemClock,
  type World,
} from "../../operator.ts"
import { startApiServer } from "../apiserver/http.ts"
import { OPERATOR_ROLE } from "../apiserver/roles.ts"

const jobs = Number(process.argv[2] ?? 1_000)
const folder = mkdtempSync(join(tmpdir(), "bench-"))
const server = await startApiServer()
server.addUser("operator", OPERATOR_ROLE)
server.model.put({ kind: "Namespace", metadata: { name: "demo" } })
const condition = {
  type: "Failed",
  status: "True",
  reason: "BackoffLimitExceeded",
  lastTransitionTime: new Date().toISOString(),
}
const spec = { template: { spec: { restartPolicy: "Never", containers: [{ name: "main", image: "busybox" }] } } }
for (let i = 0; i < jobs; i++) {
  const metadata = { name: `flickr-downloader-${i}`, namespace: "demo", labels: { app: "load" } }
  server.model.put({
    apiVersion: "batch/v1",
    kind: "Job",
    metadata,
    spec,
    status: { failed: 1, conditions: [condition] },
  })
}

const { config } = readSettings({ NAMESPACE: "demo", JOB_SELECTOR: "app=load" })
const [metrics, stop] = [new Metrics(), new AbortController()]
const cluster = connect(
  await findSource({ KUBECONFIG: server.writeKubeconfig(folder, { user: "operator" }) }),
  {},
  metrics.countCall,
)
const world: World = {
  cluster,
  clock: systemClock,
  emit: metrics.observe,
  config,
  stop: stop.signal,
  kill: stop.signal,
}
const operator = new Operator(world)
const done = operator.run()
while (operator.states().filter(({ dueAt }) => dueAt !== undefined).length < jobs) await Bun.sleep(50)

const port = Bun.serve({
  port: 0,
  hostname: "127.0.0.1",
  fetch: (request) => answerHealth(request, operator, metrics, config),
})
const taken: number[] = []
let bytes = 0
const before = process.cpuUsage()
for (let i = 0; i < 50; i++) {
  await Bun.sleep(20)
  const begunAt = performance.now()
  bytes = (await (await fetch(new URL("/metrics", port.url))).text()).length
  taken.push(performance.now() - begunAt)
}
const { user, system } = process.cpuUsage(before)
const [first, sorted] = [taken[0]!, taken.toSorted((a, b) => a - b)]
const ms = (value: number) => `${value.toFixed(1)} ms`
console.log(
  `${jobs} Jobs: /metrics has ${bytes} bytes; first ${ms(first)}, median ${ms(sorted[25]!)}, fastest ${ms(sorted[0]!)}`,
)
console.log(`CPU time of a scrape, asking and reading it included: ${ms((user + system) / 50_000)}`)
stop.abort(new Error("stopped"))
port.stop(true)
await done
await server.close()
rmSync(folder, { recursive: true, force: true })
