// How long the commands take where there is much: 1,000 Jobs, of which 20 have failed, and 10,000 records, on the
// embedded server. Prints, claims nothing: bun .dev/bench/commands.ts [BINARY]
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { type Evidence, instantText, type Job, recordFor, UNKNOWN, viewJob, viewPod } from "../../operator.ts"
import { startApiServer } from "../apiserver/http.ts"

const [JOBS, FAILED, RECORDS_EACH, RUNS] = [1_000, 20, 10, 7]
const program = process.argv[2] ? [process.argv[2]] : [process.execPath, join(import.meta.dir, "../../operator.ts")]
const server = await startApiServer({ syncMs: 1e9, batchMs: 1e9, gcMs: 1e9 })
const folder = mkdtempSync(join(tmpdir(), "bench-"))
const at = (minutes: number) => instantText(Date.now() - minutes * 60_000)
const failedAt = (ago: string) => ({
  failed: 1,
  conditions: [{ type: "Failed", status: "True", reason: "BackoffLimitExceeded", lastTransitionTime: ago }],
})
const terminated = { exitCode: 3, reason: "Error", startedAt: at(2), finishedAt: at(1) }

for (let i = 0; i < JOBS; i++) {
  const name = `job-${String(i).padStart(4, "0")}`
  const spec = {
    suspend: true,
    template: { spec: { restartPolicy: "Never", containers: [{ name: "main", image: "busybox" }] } },
  }
  const status = i < FAILED ? failedAt(at(1)) : {}
  const job = server.model.put({ kind: "Job", metadata: { name, labels: { app: "load" } }, spec, status })
  for (let n = 0; n < RECORDS_EACH; n++) {
    const old = {
      ...job,
      metadata: { ...job.metadata, ...(n > 0 && { uid: `${job.metadata.uid}-${n}` }) },
      status: failedAt(at(1 + n * 60)),
    }
    const pod = {
      metadata: { name: `${name}-x`, uid: `${i}-${n}` },
      status: { phase: "Failed", containerStatuses: [{ name: "main", state: { terminated } }] },
    }
    const pods = [viewPod(JSON.parse(JSON.stringify(pod)))]
    const logs: Evidence["logs"] = new Map([
      [`${i}-${n}/main`, { lines: Array.from({ length: 20 }, (_, l) => `a line of a log, number ${l}`) }],
    ])
    const failure = { ...UNKNOWN, cause: "exit:3" as const }
    const record = recordFor(viewJob(old as unknown as Job), { pods, logs, morePods: 0 }, failure, {
      do: "wait",
      dueAt: Date.now(),
      because: "RESTART_DELAY 1h",
    })
    server.model.put(record as Parameters<typeof server.model.put>[0])
  }
}

const KUBECONFIG = server.writeKubeconfig(folder)
const env = { PATH: process.env.PATH ?? "", HOME: folder, KUBECONFIG, JOB_SELECTOR: "app=load" }
for (const line of ["--version", "status", "status -o json", "history", "history job-0007", "explain job-0007"]) {
  const taken: number[] = []
  let bytes = 0
  for (let i = 0; i < RUNS; i++) {
    const began = performance.now()
    const child = Bun.spawn([...program, ...line.split(" ")], {
      env: { ...env, NAMESPACE: "default" },
      stdout: "pipe",
      stderr: "ignore",
    })
    bytes = (await child.stdout.text()).length
    await child.exited
    taken.push(performance.now() - began)
  }
  const sorted = taken.sort((a, b) => a - b).map((ms) => ms.toFixed(0))
  console.log(`${line.padEnd(18)} ${sorted[RUNS >> 1]} ms (${sorted[0]} to ${sorted.at(-1)}), ${bytes} characters`)
}
console.log(`${server.model.objects.jobs!.size} Jobs, ${server.model.objects.configmaps!.size} records`)
await server.close()
rmSync(folder, { recursive: true })
