// `bun run e2e [GROUPS]`: what the operator promises, checked on whatever cluster KUBECONFIG names, with the binary
// that `bun run build` wrote, in namespaces that this makes and removes. The binary itself runs as a ServiceAccount
// bound to the Role. GROUPS is a regular expression that chooses groups by name.
//   E2E_IMAGE      image of the test Jobs (busybox:1.37): a shell, sleep, hostname, tail
//   E2E_AUDIT_LOG  the API server's audit log: calls are counted there, and nowhere else
//   E2E_NODE_DIR   the directory of a cluster made by .dev/cluster/up.sh --node: the image is built, loaded, run there
//   E2E_KILL=true  also kill the operator and the API server at every step, and soak for two minutes: 8 minutes more;
//                  E2E_CLUSTER_DIR, the directory of up.sh, lets the API server be killed
//   E2E_BINARY     another binary than the one in dist/
//   E2E_KUBECTL    kubectl, if it is neither in PATH nor in ~/.cache/kube
// About 9 minutes. The last line is `N passed, N failed`.
import { existsSync } from "node:fs"
import { causeGroups } from "./causes.ts"
import { commandGroups } from "./commands.ts"
import { dashboardGroups, dashboardOutage } from "./dashboard.ts"
import { figures, quiet, roleName, tenAtOnce } from "./figures.ts"
import { healthGroups, outage } from "./health.ts"
import { imageChecks } from "./image.ts"
import { killGroups } from "./kill.ts"
import {
  abandon,
  allGone,
  binary,
  calls,
  check,
  close,
  container,
  content,
  counted,
  differences,
  failedAt,
  failingJob,
  group,
  jobThat,
  type Manifest,
  must,
  type Namespace,
  need,
  Operator,
  oomJob,
  type Role,
  runningJob,
  seconds,
  succeedingJob,
  suspendedJob,
  type Thing,
  until,
  withOomKills,
} from "./kit.ts"
import { contextSwitch, kubeconfigGroup } from "./kubeconfigs.ts"
import { kubectlProgram, tryCommand } from "./programs.ts"
import { prometheusGroup } from "./prometheus.ts"
import { protocolGroups } from "./protocol.ts"
import { ruleGroups } from "./rules.ts"
import { soakGroup } from "./soak.ts"

const now = () => performance.now()
const labels = { e2e: "yes" }
const chosen = { JOB_SELECTOR: "e2e=yes" }

// ---------------------------------------------------------------- 1: everything that the user wrote comes back

const richJob = jobThat(
  'test "$((1 < 2))" = 1 && echo "main one of $(hostname)" && echo "main two of $(hostname)"; exit 3',
  {
    name: "rich",
    labels: { app: "download", "app.kubernetes.io/part-of": "photos", user: "anna" },
    annotations: { "example.com/note": 'first line\n"second" <line>', owner: "anna" },
    spec: {
      ttlSecondsAfterFinished: 3600,
      parallelism: 2,
      completions: 2,
      backoffLimit: 4,
      podFailurePolicy: {
        rules: [
          { action: "Ignore", onPodConditions: [{ type: "DisruptionTarget", status: "True" }] },
          { action: "FailJob", onExitCodes: { containerName: "main", operator: "In", values: [3] } },
        ],
      },
    },
    pod: { initContainers: [container("prepare", 'echo "init one of $(hostname)"; echo "init two of $(hostname)"')] },
  },
)

/** The Job is there anew after the delay, and holds what it held before. */
async function comesBack(ns: Namespace, name: string, delayMs: number, latestMs: number): Promise<string> {
  const old = await ns.failed(name)
  const young = await ns.another(old, latestMs + 10_000)
  const changed = differences(content(old), content(young))
  need(changed.length === 0, `changed: ${changed.join("\n")}`)
  for (const [key, value] of Object.entries(young.metadata.labels ?? {}))
    need(!key.endsWith("controller-uid") || value === young.metadata.uid, `label ${key} is another Job's: ${value}`)
  const after = Date.parse(young.metadata.creationTimestamp) - failedAt(old)!
  need(
    after >= delayMs && after <= latestMs,
    `back after ${seconds(after)}, not between ${seconds(delayMs)} and ${seconds(latestMs)}`,
  )
  return `after ${after / 1000} s`
}

const roundTrip = (role: Role) =>
  group(`round trip ${role}`, async (ns, check) => {
    // Much less than the CHECK_INTERVAL where the Role allows a watch, whatever else the machine does.
    const latest = 25_000
    const env = { JOB_NAMES: "rich,bare,applied", RESTART_DELAY: "5", CHECK_INTERVAL: role === "old" ? "10" : "60" }
    const operator = await ns.operator(env, role)
    const inTime = `after RESTART_DELAY=5${role === "old" ? ", within CHECK_INTERVAL=10 of that" : ""}`
    const applied = JSON.stringify(failingJob({ name: "applied", labels: { app: "applied" } }))
    const bare = failingJob({ name: "bare" })
    Object.assign((bare.spec as { template: object }).template, { metadata: { labels: { app: "bare" } } })
    const asWritten = await ns.create("jobs", richJob)
    await ns.create("jobs", bare)

    await Promise.all([
      check(`with ${roleName(role)} a Job comes back ${inTime}, with all that its user wrote`, () =>
        comesBack(ns, "rich", 5000, latest),
      ),
      check(`with ${roleName(role)} a Job without labels of its own comes back the same`, () =>
        comesBack(ns, "bare", 5000, latest),
      ),
      check(`with ${roleName(role)} a Job of kubectl apply comes back and can be applied again unchanged`, async () => {
        const apply = async (manifest: string) => {
          const { code, out, err } = await tryCommand([kubectlProgram, "-n", ns.name, "apply", "-f", "-"], manifest)
          need(code === 0, `kubectl: ${err}`)
          return out
        }
        await apply(applied)
        const after = await comesBack(ns, "applied", 5000, latest)
        const answer = await apply(applied)
        need(answer === "job.batch/applied unchanged", answer)
        return after
      }),
      check(
        `with ${roleName(role)} two log lines of container and initContainer are in the operator's log, once`,
        async () => {
          await operator.says("a line of the container", ["main two of rich-"], 60_000)
          await Bun.sleep(1000) // time to say it twice
          const said = operator.lines.flatMap((line) => /(main|init) (one|two) of rich-\w+/.exec(line)?.[0] ?? [])
          const twice = said.filter((line, i) => said.indexOf(line) !== i)
          need(twice.length === 0, `said twice: ${twice.join(", ")}`)
          const pods = new Set(said.map((line) => line.split(" of ")[1]))
          const full = [...pods].filter((pod) => said.filter((line) => line.endsWith(` ${pod}`)).length === 4)
          need(full.length > 0, `of no pod all four lines: ${said.join(", ")}`)
          return `of ${full.length} pods of ${pods.size}`
        },
      ),
    ])
    await check("what came back is what was written, not only what was read", async () => {
      const young = await ns.job("rich")
      const changed = differences(content(asWritten), content(young!))
      need(changed.length === 0, `changed: ${changed.join("\n")}`)
    })
    await check("no intent is left", () => ns.noIntent().then(() => ""))
    if (role === "old")
      await check("with the old Role it says at start that watch is missing", () =>
        operator.says("what is missing", [/watch/i]),
      )
    await check("SIGTERM while nothing is under way: exit code 0", async () => {
      const asked = now()
      const code = await operator.stop()
      need(code === 0, `exit code ${code}`)
      return seconds(now() - asked)
    })
  })

// ---------------------------------------------------------------- 2, 3: causes

interface Oom {
  failures: number[]
  births: number[]
  podsLeft: Promise<Thing[]> | undefined
}

/** Follows the generations of a Job. */
async function followOom(ns: Namespace, name: string): Promise<Oom> {
  const oom: Oom = { failures: [], births: [], podsLeft: undefined }
  const seen = new Set<string>()
  await ns.watch("jobs", (type, job) => {
    if (job.metadata.name !== name) return
    if (type === "ADDED") oom.births.push(now())
    if (failedAt(job) === undefined || seen.has(job.metadata.uid)) return
    seen.add(job.metadata.uid)
    oom.failures.push(now())
    oom.podsLeft ??= ns.podsOf(job)
  })
  return oom
}

const outOfMemory = () =>
  group("oom", async (ns, check) => {
    const operator = await ns.operator({ ...chosen, SKIP_DELAY_ON_OOM: "true" })
    const claim =
      "an OOM-killed Job with restartPolicy OnFailure is seen as OOM, with its log; " +
      "with SKIP_DELAY_ON_OOM=true it restarts at once, then after 10 s, then after 20 s"
    await check(claim, () =>
      withOomKills(ns, "hungry", async (name) => {
        const oom = await followOom(ns, name)
        await ns.create("jobs", oomJob({ name, labels }))
        await until("the Job is Failed", () => oom.podsLeft !== undefined)
        await operator.says("OOM", [`/${name}]`, /\boom|out of memory|OOMKilled/i])
        await operator.says("the container's last line", ["before the end"])
        await until("three restarts", () => oom.births.length >= 4, 300_000)
        const waits = [0, 1, 2].map((i) => oom.births[i + 1]! - oom.failures[i]!)
        const said = `${waits.map(seconds).join(", ")}; pods left when it was Failed: ${(await oom.podsLeft!).length}`
        // The failure has whole seconds: what is due 10 s after it comes up to 1 s sooner than 10 s after we saw it.
        need(
          [0, 10_000, 20_000].every((due, i) => waits[i]! > due - 1500 && waits[i]! < due + 5_000),
          said,
        )
        return said
      }),
    )
  })

const causes = () =>
  group("causes", async (ns, check) => {
    const operator = await ns.operator(chosen)
    await ns.create("jobs", runningJob({ name: "late", labels, spec: { activeDeadlineSeconds: 4 } }))
    const containers = [container("good", "exit 0"), container("bad", "echo the bad one; exit 7")]
    await ns.create("jobs", jobThat("", { name: "two", labels, pod: { containers } }))
    const absent = await ns.create(
      "jobs",
      jobThat("", { name: "absent", labels, container: { image: "image.invalid/none:1" } }),
    )
    await Promise.all([
      check("a Job that hits activeDeadlineSeconds: the cause is the deadline", () =>
        operator.says("deadline", ["late", /deadline/i]),
      ),
      check("a Job with two containers: the cause is the exit code of the one that failed", async () => {
        await operator.says("the line of the one that failed", ["the bad one"])
        return operator.says("exit code 7", ["two", /exit(ed|:| code| with)* ?7\b/i])
      }),
      check("a Job whose image cannot be pulled: nothing is done, and the log says why", async () => {
        await until("the pod cannot get its image", async () =>
          JSON.stringify(await ns.podsOf(absent)).includes("ImagePull"),
        )
        const line = await operator.says("why", ["absent", /image|running|not failed|active/i])
        await Bun.sleep(3000)
        need((await ns.job("absent"))?.metadata.uid === absent.metadata.uid, "the Job was replaced")
        return line
      }),
    ])
  })

// ---------------------------------------------------------------- 4: nothing healthy is touched

const untouched = () =>
  group("untouched", async (ns, check) => {
    const make = (manifest: Manifest) => ns.create("jobs", manifest)
    const template = {
      spec: { template: { spec: { restartPolicy: "Never", containers: [container("main", "true")] } } },
    }
    const cronJob = await ns.create("cronjobs", {
      metadata: { name: "nightly" },
      spec: { schedule: "0 0 1 1 *", suspend: true, jobTemplate: template },
    })
    const owned = (name: string, controller: object): Manifest => {
      const manifest = failingJob({ name, labels })
      const owner = {
        apiVersion: "batch/v1",
        kind: "CronJob",
        name: "nightly",
        uid: cronJob.metadata.uid,
        ...controller,
      }
      return { ...manifest, metadata: { ...manifest.metadata, ownerReferences: [owner] } }
    }
    await make(runningJob({ name: "running", labels }))
    await make(succeedingJob({ name: "succeeded", labels }))
    await make(suspendedJob({ name: "suspended", labels }))
    await make(owned("of-cronjob", { controller: true }))
    await make(owned("of-cronjob-loosely", {}))
    await make(failingJob({ name: "foreign", labels, spec: { managedBy: "example.com/queue" } }))
    await make(failingJob({ name: "unchosen", labels: { e2e: "no" } }))
    await make(failingJob({ name: "deleting", labels }))
    await make(failingJob({ name: "control", labels, spec: { managedBy: "kubernetes.io/job-controller" } }))
    const at = new Date().toISOString()
    const condition = (type: string) => ({
      type,
      status: "True",
      reason: "Test",
      message: "",
      lastProbeTime: at,
      lastTransitionTime: at,
    })
    await must("PATCH", `${ns.path("jobs", "foreign")}/status`, {
      status: { startTime: at, failed: 1, conditions: [condition("FailureTarget"), condition("Failed")] },
    })
    for (const name of ["of-cronjob", "of-cronjob-loosely", "foreign", "unchosen", "deleting"]) await ns.failed(name)
    await until("one has succeeded", async () =>
      (await ns.job("succeeded"))?.status?.conditions?.some((c) => c.type === "Complete"),
    )
    await ns.hold("jobs", (await ns.job("deleting"))!)
    await must("DELETE", ns.path("jobs", "deleting"), { propagationPolicy: "Foreground" })
    const before = new Map((await ns.list("jobs")).map((job) => [job.metadata.name, job]))

    const operator = await ns.operator({ ...chosen, RESTART_DELAY: "0" })
    await check("a failed Job beside them is restarted", () => ns.another(before.get("control")!).then(() => ""))
    await Bun.sleep(5000)
    const reasons: [string, RegExp | undefined][] = [
      ["running", /running|active/i],
      ["succeeded", /succe|complete/i],
      ["suspended", /suspend/i],
      ["deleting", /delet|terminating/i],
      ["of-cronjob", /CronJob/i],
      ["of-cronjob-loosely", /CronJob/i],
      ["foreign", /managed ?by/i],
      ["unchosen", undefined],
    ]
    for (const [name, why] of reasons) {
      await check(`not touched: ${name}`, async () => {
        const job = await ns.job(name)
        need(job?.metadata.uid === before.get(name)!.metadata.uid, "replaced or gone")
        const changed = differences(content(before.get(name)!), content(job))
        need(changed.length === 0, `changed: ${changed.join("\n")}`)
        const written = counted
          ? (await calls(ns)).filter((c) => c.name === name && !["get", "list", "watch"].includes(c.verb))
          : []
        need(written.length === 0, `calls: ${written.map((c) => c.verb).join(", ")}`)
        if (!why) return
        const said = operator.saying(new RegExp(`/${name}(?![\\w-])`), why)
        need(said.length === 1, `said ${said.length} times: ${said.join("\n")}`)
      })
    }
    // The control beside them goes on failing, so that one of its own may stand for a moment.
    await ns.noIntent()
  })

// ---------------------------------------------------------------- 5: no Job is lost

/** Ends the operator right after its DELETE; with `slow` the old Job stays terminating until it is released. */
const crash = (signal: "SIGKILL" | "SIGTERM", role: Role, slow: boolean) =>
  group(`crash ${signal} ${role}${slow ? " slow" : ""}`, async (ns, check) => {
    const while_ = slow ? ", the old Job still terminating" : ""
    await check(
      `with ${roleName(role)}, ${signal} right after the DELETE${while_}: the Job is there again`,
      async () => {
        await ns.create("jobs", failingJob({ name: "victim", labels, annotations: { note: "kept" } }))
        const old = await ns.failed("victim")
        const pods = await ns.podsOf(old)
        if (slow) for (const pod of pods) await ns.hold("pods", pod)
        let operator: Operator | undefined
        let deletedAt = 0
        await ns.watch("jobs", (type, job) => {
          if (
            deletedAt ||
            job.metadata.uid !== old.metadata.uid ||
            !(job.metadata.deletionTimestamp || type === "DELETED")
          )
            return
          operator?.kill(signal)
          deletedAt = now()
        })
        operator = await ns.operator({ ...chosen, RESTART_DELAY: "0", CHECK_INTERVAL: "2" }, role)
        await until("the operator deletes the Job", () => deletedAt > 0)
        const code = await operator.ended() // one signal only: a second one may mean something else
        const ended = now() - deletedAt
        if (signal === "SIGTERM") need(code === 0, `exit code ${code}`)
        const between = await ns.job("victim")
        const terminating =
          between?.metadata.uid === old.metadata.uid && between.metadata.deletionTimestamp !== undefined
        if (slow) need(terminating, "the old Job is not terminating")
        if (signal === "SIGKILL") need(!between || terminating, "killed too late: the Job was there already")
        if (signal === "SIGTERM" && !slow) need(between && !terminating, "it could have finished, but did not")
        if (!between || terminating) need((await ns.intents()).length > 0, "no Job and no intent")

        const startedAt = now()
        await ns.operator({ ...chosen, CHECK_INTERVAL: "2" }, role)
        if (slow) {
          await Bun.sleep(1500)
          need((await ns.job("victim"))?.metadata.uid === old.metadata.uid, "the old Job did not stay")
          for (const pod of pods) await ns.release("pods", pod)
        }
        const young = await ns.another(old)
        const back = now() - startedAt
        const changed = differences(content(old), content(young))
        need(changed.length === 0, `changed: ${changed.join("\n")}`)
        await ns.noIntent()
        const state = !between ? "absent" : terminating ? "terminating" : "back already"
        return `ended after ${seconds(ended)}, Job then ${state}; back ${seconds(back)} after the new start`
      },
    )
  })

const quota = () =>
  group("quota", async (ns, check) => {
    await ns.create("jobs", failingJob({ name: "kept", labels }))
    const old = await ns.failed("kept")
    await ns.create("resourcequotas", { metadata: { name: "full" }, spec: { hard: { "count/jobs.batch": "1" } } })
    await until("the quota is full", async () =>
      Bun.deepEquals((await ns.find("resourcequotas", "full"))?.status?.used, { "count/jobs.batch": "1" }),
    )
    const operator = await ns.operator({ ...chosen, RESTART_DELAY: "0" })
    await check("a full quota of Jobs: nothing is deleted, and the log says why", async () => {
      const line = await operator.says("why", ["kept", /quota/i])
      await Bun.sleep(5000)
      const job = await ns.job("kept")
      need(job?.metadata.uid === old.metadata.uid && !job.metadata.deletionTimestamp, "the Job was deleted")
      if (counted) need(!(await calls(ns)).some((c) => c.verb === "delete"), "a DELETE was sent")
      return line
    })
    await check("once the quota has room, the Job is restarted", async () => {
      await ns.patch("resourcequotas", "full", { spec: { hard: { "count/jobs.batch": "5" } } })
      const given = now()
      await ns.another(old, 75_000)
      return `after ${seconds(now() - given)}`
    })
  })

// ---------------------------------------------------------------- without a cluster

const commands = () => {
  const run = async (env: Record<string, string>, ...args: string[]) => {
    const operator = new Operator(env, args)
    const code = await Promise.race([operator.exited, Bun.sleep(10_000)])
    await Bun.sleep(50)
    return { code, text: operator.lines.join("\n") }
  }
  return Promise.all([
    check("commands", "--version and --help work without a cluster", async () => {
      for (const [argument, says] of [
        ["--version", /\d+\.\d+\.\d+/],
        ["--help", /JOB_SELECTOR/],
      ] as const) {
        const { code, text } = await run({}, argument)
        need(code === 0 && says.test(text), `${argument}: exit code ${code}: ${text}`)
      }
    }),
    check("commands", "wrong values: all are named at once, exit code 2", async () => {
      const { code, text } = await run({ JOB_NAMES: "a", LOG_LEVEL: "nope", RESTART_DELAY: "soon" })
      need(code === 2 && /LOG_LEVEL/.test(text) && /RESTART_DELAY/.test(text), `exit code ${code}: ${text}`)
    }),
  ])
}

// ---------------------------------------------------------------- all of them

async function all() {
  need(existsSync(binary), `there is no ${binary}: bun run build`)
  const background = quiet()
  for (const alone of [figures, commands]) await alone()
  const both: Role[] = ["operator", "old"]
  const crashes = both.flatMap((role) =>
    [false, true].flatMap((slow) => [crash("SIGKILL", role, slow), crash("SIGTERM", role, slow)]),
  )
  await Promise.all([
    ...both.map(roundTrip),
    ...crashes,
    outOfMemory(),
    causes(),
    untouched(),
    quota(),
    tenAtOnce("old"),
  ])
  await protocolGroups()
  await Promise.all([
    ...ruleGroups(),
    ...causeGroups(),
    ...healthGroups(),
    prometheusGroup(),
    ...commandGroups(),
    ...dashboardGroups(),
    contextSwitch(),
    kubeconfigGroup(),
    background,
  ])
  if (process.env.E2E_KILL === "true") {
    await killGroups()
    await soakGroup(2)
  }
  await imageChecks()
  await outage()
  await dashboardOutage()
  await check("end", "the namespaces are gone", () => allGone().then(() => ""))
}

for (const signal of ["SIGINT", "SIGTERM"] as const)
  process.once(signal, () => {
    abandon().finally(() => process.exit(1))
  })
await all().catch((error) => check("e2e", "it runs to its end", () => Promise.reject(error)))
process.exit((await close()) ? 0 : 1)
