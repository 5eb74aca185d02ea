// Each row of the table of causes on a real cluster, with real pods: what the operator says of them. Also waits that a
// program asks for, logs as a terminal would show them, and a namespace in which nothing happens.
//   E2E_CAPTURE=FILE  also writes the pods' statuses there: .dev/test/captured_pods.json
import { writeFile } from "node:fs/promises"
import {
  calls,
  container,
  counted,
  failedAt,
  group,
  idleJob,
  type Json,
  jobThat,
  type Manifest,
  must,
  type Namespace,
  need,
  Operator,
  oomJob,
  runningJob,
  Skip,
  seconds,
  type Thing,
  until,
} from "./kit.ts"

const labels = { e2e: "yes" }
const chosen = { JOB_SELECTOR: "e2e=yes", LOG_LEVEL: "DEBUG" }
const createdAt = (job: Thing) => Date.parse(job.metadata.creationTimestamp)

type Row = { cause: string; job: Manifest; after?: (ns: Namespace, job: Thing) => Promise<void> }

/** A worker that ends after 2 s with exit code 3, beside a native sidecar. */
const besideSidecar = (name: string, sidecar: string) => {
  const init = [{ ...container("mesh", sidecar), restartPolicy: "Always" }]
  return jobThat("echo it works; sleep 2; exit 3", { name, labels, pod: { initContainers: init } })
}

async function runningPod(ns: Namespace, job: Thing): Promise<Thing> {
  return until(`a pod of ${job.metadata.name} runs`, async () =>
    (await ns.podsOf(job)).find(({ status }) => status?.phase === "Running"),
  )
}

async function evict(ns: Namespace, job: Thing): Promise<void> {
  const { name } = (await runningPod(ns, job)).metadata
  const eviction = { apiVersion: "policy/v1", kind: "Eviction", metadata: { name, namespace: ns.name } }
  await must("POST", `${ns.path("pods", name)}/eviction`, eviction)
}

/** What the kubelet reports of a pod that its node did not admit after a reboot. */
async function rejectByHand(ns: Namespace, job: Thing): Promise<void> {
  const pod = await until(`${job.metadata.name} has a pod`, async () => (await ns.podsOf(job))[0])
  const message = "Pod was rejected: Allocate failed due to no healthy devices present, which is unexpected"
  const status = { phase: "Failed", reason: "UnexpectedAdmissionError", message }
  await must("PATCH", `${ns.path("pods", pod.metadata.name)}/status`, { status })
}

const ownSelector = { manualSelector: true, selector: { matchLabels: { run: "own-7" } } }

function manualSelectorJob(): Manifest {
  const job = jobThat("echo it fails; exit 3", { name: "own-selector", labels, spec: ownSelector })
  const spec = job.spec as { template: { metadata?: Json } }
  spec.template.metadata = { labels: { run: "own-7" } }
  return job
}

/** A shell variable of 40 MiB, in a container that may have 32. */
const eatMemory = `x=$(head -c 40000000 /dev/zero | tr '\\0' a); echo "\${#x}"`
const little = { resources: { limits: { memory: "16Mi" }, requests: { memory: "16Mi" } } }

const rows: Record<string, Row> = {
  "an OOM kill": { cause: "oom", job: jobThat("exec tail /dev/zero", { name: "oom", labels, container: little }) },
  "an OOM kill whose pod the Job controller removes": { cause: "oom", job: oomJob({ name: "oom-again", labels }) },
  "an OOM kill of an init container": {
    cause: "oom",
    job: jobThat("true", {
      name: "oom-init",
      labels,
      pod: { initContainers: [container("fetch", "exec tail /dev/zero", little)] },
    }),
  },
  "an OOM kill of a child of the shell, which the kubelet does not report": {
    cause: "oom|exit:\\d+",
    job: jobThat(eatMemory, { name: "oom-child", labels, container: little }),
  },
  "an eviction through the API": { cause: "evicted", job: runningJob({ name: "evicted", labels }), after: evict },
  "a pod that its node does not admit again": {
    cause: "evicted",
    job: idleJob({ name: "rejected", labels }),
    after: rejectByHand,
  },
  "a deadline": {
    cause: "deadline",
    job: runningJob({ name: "deadline", labels, spec: { activeDeadlineSeconds: 3 } }),
  },
  "an exit code": { cause: "exit:3", job: jobThat("exit 3", { name: "exit-3", labels }) },
  "an exit code with restartPolicy OnFailure": {
    cause: "exit:4",
    job: jobThat("sleep 1; exit 4", {
      name: "on-failure",
      labels,
      pod: { restartPolicy: "OnFailure", terminationGracePeriodSeconds: 30 },
    }),
  },
  "an exit code of an init container": {
    cause: "exit:9",
    job: jobThat("true", { name: "init", labels, pod: { initContainers: [container("fetch", "exit 9")] } }),
  },
  "SIGKILL without OOMKilled": {
    cause: "exit:137",
    job: jobThat("sleep 60 & kill -9 $!; wait $!", { name: "killed", labels }),
  },
  "a native sidecar that ends later, with 143": {
    cause: "exit:3",
    job: besideSidecar("mesh-term", "trap 'exit 143' TERM; while true; do sleep 0.1; done"),
  },
  "a native sidecar that ignores SIGTERM and is killed later": {
    cause: "exit:3",
    job: besideSidecar("mesh-kill", "trap '' TERM; while true; do sleep 0.1; done"),
  },
  "a native sidecar that ends before the worker": {
    cause: "exit:3",
    job: besideSidecar("mesh-first", "sleep 0.5; exit 7"),
  },
  "a Job with its own selector": { cause: "exit:3", job: manualSelectorJob() },
  "a container that cannot be started": {
    cause: "unknown",
    job: jobThat("", { name: "no-start", labels, container: { command: ["/no/such/program"] } }),
  },
  "exit code 255 that containerd invents after a power failure": {
    cause: "unknown",
    job: idleJob({ name: "power", labels }),
    after: (ns, job) => ns.failByHand(job, 255, "Unknown"),
  },
  "a helper that ends only because its pod is told to stop": {
    cause: "exit:3",
    job: jobThat("sleep 1; exit 3", {
      name: "helper",
      labels,
      pod: {
        restartPolicy: "OnFailure",
        terminationGracePeriodSeconds: 30,
        containers: [
          container("main", "sleep 1; exit 3"),
          container("helper", "trap 'sleep 2; exit 143' TERM; while true; do sleep 0.1; done"),
        ],
      },
    }),
  },
}

/** The parts of a pod that tell why it failed. */
function essence(pod: Thing): Json {
  const { status, spec, metadata } = structuredClone(pod) as unknown as {
    metadata: { [key: string]: Json }
    spec: { restartPolicy: Json; initContainers?: { name: Json; restartPolicy?: Json }[] }
    status: { [key: string]: Json }
  }
  const keys = ["name", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"]
  const kept = Object.fromEntries(keys.filter((key) => metadata[key] !== undefined).map((key) => [key, metadata[key]!]))
  const initContainers = (spec.initContainers ?? []).map(({ name, restartPolicy }) =>
    restartPolicy ? { name, restartPolicy } : { name },
  )
  const states = ["phase", "reason", "message", "conditions", "containerStatuses", "initContainerStatuses"]
  return {
    metadata: { ...kept, ownerReferences: metadata.ownerReferences ?? null },
    spec: { restartPolicy: spec.restartPolicy, initContainers },
    status: Object.fromEntries(states.filter((key) => status[key] !== undefined).map((key) => [key, status[key]!])),
  }
}

/** Keeps every state of every pod, so that the last one before its end is known. */
async function capture(ns: Namespace) {
  const versions = new Map<string, Thing[]>()
  await ns.watch("pods", (type, pod) => {
    const owner = pod.metadata.ownerReferences?.find(({ kind }) => kind === "Job")
    if (type !== "DELETED" && owner) versions.set(owner.uid, [...(versions.get(owner.uid) ?? []), pod])
  })
  return (job: Thing): Json[] => {
    const latest = new Map((versions.get(job.metadata.uid) ?? []).map((pod) => [pod.metadata.uid, pod]))
    return [...latest.values()].map(essence)
  }
}

const everyCause = () =>
  group("causes: each row of the table", async (ns, check) => {
    const podsOf = await capture(ns)
    const operator = await ns.operator({ ...chosen, RESTART_RULES: "any=never" })
    const captured: { [row: string]: Json } = {}
    const prove = (what: string, { cause, job, after }: Row) =>
      check(what, async () => {
        const made = await ns.create("jobs", job)
        await after?.(ns, made)
        const failed = await ns.failed(made.metadata.name)
        const line = await operator.says("why", [`/${made.metadata.name}] failed at`])
        const said = /failed at \S+: ([\w:]+)/.exec(line)?.[1] ?? ""
        const condition = failed.status?.conditions?.find(({ type }) => type === "Failed")
        captured[what] = { cause: said, reason: condition?.reason ?? "", pods: podsOf(made) }
        need(new RegExp(`^(${cause})$`).test(said), `the operator says ${said}`)
        return said
      })
    await Promise.all(Object.entries(rows).map(([what, row]) => prove(what, row)))
    if (process.env.E2E_CAPTURE) await writeFile(process.env.E2E_CAPTURE, `${JSON.stringify(captured, undefined, 1)}\n`)
    await check("J06 a SIGKILL without OOMKilled is reported as such, and nothing else is", async () => {
      const hints = operator.saying("killed by SIGKILL: out of memory is possible but not confirmed")
      need(hints.length >= 1, "it is not")
      return hints[0]?.trim()
    })
  })

/** What a command of the operator prints, run by whoever has KUBECONFIG. */
async function command(...args: string[]): Promise<string> {
  const ran = new Operator({ KUBECONFIG: process.env.KUBECONFIG ?? "", HOME: "/" }, args)
  await ran.ended()
  await Bun.sleep(50)
  return ran.lines.join("\n")
}

/** What a program prints or writes, and the seconds after which its Job is back. */
const asking = () =>
  group("causes: waits that a program asks for", async (ns, check) => {
    const rule = "log:/retry[- ]after:? *(?<wait>[^,;]+)/i=asked..1h"
    const settings = { ...chosen, RESTART_RULES: rule, RESTART_DELAY: "1d" }
    const operator = await ns.operator(settings)
    const isBack = (name: string, script: string, waitMs: number) =>
      check(`${name}: back after the ${seconds(waitMs)} that it asks for`, async () => {
        await ns.create("jobs", jobThat(script, { name, labels }))
        const old = await ns.failed(name)
        const waited = createdAt(await ns.another(old)) - failedAt(old)!
        need(waited >= waitMs && waited <= waitMs + 3_000, `after ${waited} ms`)
        const [line] = operator.saying(`/${name}] will be restarted at`)
        return `after ${seconds(waited)}: ${line?.replace(/.*: rule/, "rule")}`
      })
    await Promise.all([
      isBack("printed", "echo HTTP 429, Retry-After: 25; exit 1", 25_000),
      isBack("coloured", "printf '\\033[31mretry after 15s\\033[0m\\n'; exit 1", 15_000),
      isBack("written", "echo 'Retry-After: 10' > /dev/termination-log; exit 1", 10_000),
      check("what cannot be read is the maximum: status shows one hour", async () => {
        await ns.create("jobs", jobThat("echo Retry-After: soon; exit 1", { name: "unreadable", labels }))
        const old = await ns.failed("unreadable")
        await operator.says("when", ["/unreadable] will be restarted at"])
        const text = await command("status", "-n", ns.name, "-o", "json")
        const due = new Date(failedAt(old)! + 3_600_000).toISOString().replace(".000", "")
        need(text.includes(due), `no ${due} in ${text}`)
        return `due at ${due}`
      }),
    ])
  })

/** A bar of 20 KB that is redrawn 300 times, then an error; and an error in colour. */
const terminals = () =>
  group("causes: logs as a terminal shows them", async (ns, check) => {
    const rules = "log:/^Upload failed: quota/=never, log:/^Error: no space/=never"
    const operator = await ns.operator({ ...chosen, RESTART_RULES: rules, RESTART_DELAY: "1d" })
    const bar = `i=0; while [ $i -lt 300 ]; do printf '\\rUploading %050d %d of 300' 0 $i; i=$((i+1)); done`
    const scripts: Record<string, [script: string, shown: string]> = {
      bar: [
        `${bar}; printf '\\r\\033[KUpload failed: quota has been exceeded\\n'; exit 1`,
        "Upload failed: quota has been exceeded",
      ],
      colour: ["printf '\\033[1;31mError:\\033[0m no space\\n'; exit 1", "Error: no space"],
    }
    for (const [name, [script, shown]] of Object.entries(scripts))
      await check(`${name}: the rule matches, and history shows what a terminal would`, async () => {
        await ns.create("jobs", jobThat(script, { name, labels }))
        await operator.says("that it is given up", [`/${name}] given up`])
        const text = await until("history tells of it", async () => {
          const said = await command("history", name, "-n", ns.name, "-o", "json")
          return said.includes(shown) && said
        })
        need(text.includes(`"${shown}"`), `it shows ${text.slice(0, 2_000)}`)
        return shown
      })
  })

/** Silence is no fault: bookmarks come once a minute. */
const quietNamespace = (CHECK_INTERVAL: string) =>
  group(`causes: 200 s in which nothing happens, CHECK_INTERVAL=${CHECK_INTERVAL}`, async (ns, check) => {
    await ns.create("jobs", runningJob({ name: "quiet", labels }))
    const operator = await ns.operator({ ...chosen, CHECK_INTERVAL })
    await operator.says("that it has seen it", ["/quiet] left alone"])
    await Bun.sleep(5_000)
    const before = operator.lines.length
    const from = Date.now()
    await Bun.sleep(200_000)
    await check("nothing is logged", async () => {
      const said = operator.lines.slice(before)
      need(said.length === 0, said.join("\n"))
    })
    await check("there are no calls but the two watches, if they were due to be opened again", async () => {
      if (!counted) throw new Skip("E2E_AUDIT_LOG is not set")
      const all = (await calls(ns)).filter(({ at, code, verb }) => at > from && !(verb === "watch" && code === 0))
      const opened = new Set(all.map(({ id }) => id))
      need(opened.size <= 2 && all.every(({ verb }) => verb === "watch"), all.map(({ verb, uri }) => verb + uri).join())
      return `${opened.size} calls`
    })
  })

export const causeGroups = () => [everyCause(), asking(), terminals(), ...["10", "60"].map(quietNamespace)]
