// The right wait for each cause, on a real cluster: rules, limits, spacing, memory, and what annotations on a Job say.
import {
  failedAt,
  failingJob,
  group,
  jobThat,
  must,
  type Namespace,
  need,
  type Operator,
  oomJob,
  prefix,
  seconds,
  type Thing,
  until,
  withOomKills,
} from "./kit.ts"

const labels = { e2e: "yes" }
const chosen = { JOB_SELECTOR: "e2e=yes", LOG_LEVEL: "DEBUG" }
const mark = (job: Thing, name: string) => job.metadata.annotations?.[prefix + name]
const createdAt = (job: Thing) => Date.parse(job.metadata.creationTimestamp)
const annotate = (values: Record<string, string | null>) => ({
  metadata: { annotations: Object.fromEntries(Object.entries(values).map(([name, value]) => [prefix + name, value])) },
})

const oomComesBack = (ns: Namespace, operator: Operator) =>
  withOomKills(ns, "oom", async (name) => {
    const old = await ns.create("jobs", oomJob({ name, labels }))
    const line = await operator.says(`how ${name} failed`, [`/${name}] failed at`], 120_000)
    const [, failed = "", cause = ""] = /failed at (\S+): ([\w:]+)/.exec(line) ?? []
    need(cause === "oom", `the operator said ${cause}`)
    const young = await ns.another(old)
    const waited = createdAt(young) - Date.parse(failed)
    need(waited >= 0 && waited <= 3_000, `after ${waited} ms`)
    need(mark(young, "last-cause") === "oom", `last-cause ${mark(young, "last-cause")}`)
    return `${name} after ${seconds(waited)}, last-cause oom`
  })

/** Each cause once, with its rule; every other wait is an hour. */
const causes = () =>
  group("rules: causes", async (ns, check) => {
    const rules =
      "exit:3=2s, log:/quota exceeded/i=4s\noom=0s, deadline=3s, evicted=1s, exit:7=never, unknown=6s, any=1h"
    const operator = await ns.operator({ ...chosen, RESTART_RULES: rules })
    const slow = { terminationGracePeriodSeconds: 1 }
    await ns.create("jobs", failingJob({ name: "exit-3", labels, exitCode: 3 }))
    await ns.create("jobs", jobThat("echo Quota Exceeded, come back; exit 5", { name: "log-line", labels }))
    await ns.create(
      "jobs",
      jobThat("exec sleep 3600", { name: "deadline", labels, spec: { activeDeadlineSeconds: 3 }, pod: slow }),
    )
    await ns.create("jobs", failingJob({ name: "token", labels, exitCode: 7 }))
    await ns.create("jobs", jobThat("exec sleep 3600", { name: "evicted", labels, pod: slow }))
    const comesBack = (name: string, waitMs: number, cause: string) =>
      check(`${name}: restarted ${seconds(waitMs)} after its failure, as its rule says`, async () => {
        const old = await ns.failed(name)
        const young = await ns.another(old)
        const waited = createdAt(young) - failedAt(old)!
        // A loaded node takes its time; the next longer wait of the rules would be far later.
        need(waited >= waitMs && waited <= waitMs + 20_000, `after ${waited} ms`)
        need(mark(young, "last-cause") === cause, `last-cause ${mark(young, "last-cause")}`)
        return `after ${seconds(waited)}, last-cause ${cause}`
      })
    const evict = async () => {
      const pod = await until("a pod runs", async () =>
        (await ns.list("pods")).find((p) => p.metadata.name.startsWith("evicted-") && p.status?.phase === "Running"),
      )
      const eviction = {
        apiVersion: "policy/v1",
        kind: "Eviction",
        metadata: { name: pod.metadata.name, namespace: ns.name },
      }
      await must("POST", `${ns.path("pods", pod.metadata.name)}/eviction`, eviction)
      await comesBack("evicted", 1_000, "evicted")
    }
    await Promise.all([
      comesBack("exit-3", 2_000, "exit:3"),
      comesBack("log-line", 4_000, "exit:5"),
      check("oom: restarted at once, as its rule says", () => oomComesBack(ns, operator)),
      comesBack("deadline", 3_000, "deadline"),
      evict(),
    ])
    await check("exit:7=never: the Job is left, and one ERROR line and one Event say so", async () => {
      const old = await ns.failed("token")
      const line = await operator.says("that it is given up", ["token", "given up", "exit:7=never"])
      await Bun.sleep(3_000)
      need((await ns.job("token"))?.metadata.uid === old.metadata.uid, "it was restarted")
      const events = (await ns.list("events")) as (Thing & { reason?: string; involvedObject?: { name: string } })[]
      const mine = events.filter(
        ({ reason, involvedObject }) => reason === "GivenUp" && involvedObject?.name === "token",
      )
      need(mine.length === 1, `${mine.length} Events`)
      need(
        operator.lines.filter((l) => l.includes("ERROR") && l.includes("/token]")).length === 1,
        "not one ERROR line",
      )
      return line
    })
  })

const memory = () =>
  group("rules: memory", async (ns, check) => {
    // 80 MiB: a shell variable of 40 MiB, and the copy that the shell makes of it.
    const script = `x=$(head -c 40000000 /dev/zero | tr '\\0' a); echo "\${#x}"`
    const resources = { limits: { memory: "32Mi" }, requests: { memory: "32Mi" } }
    await ns.operator({ ...chosen, RESTART_RULES: "oom=0s" })
    const annotations = { [`${prefix}oom-memory-max`]: "512Mi" }
    await check("an OOM loop ends when the raised memory suffices", () =>
      withOomKills(ns, "hungry", async (name) => {
        await ns.create("jobs", jobThat(script, { name, labels, annotations, container: { resources } }))
        const job = await until("the Job has succeeded", async () => {
          const now = await ns.job(name)
          const isComplete = now?.status?.conditions?.some((c) => c.type === "Complete" && c.status === "True")
          return isComplete ? now : undefined
        })
        const { limits, requests } = resourcesOf(job)
        need(limits.memory !== "32Mi", `limit ${limits.memory}`)
        need(limits.memory === requests.memory, `limit ${limits.memory}, request ${requests.memory}`)
        const first = mark(job, "oom-memory-first")
        need(first?.includes("32Mi"), `first value: ${first}`)
        return `limit and request ${limits.memory} after ${mark(job, "restarts")} restarts, first ${first}`
      }),
    )
  })

type Resources = { limits: { memory: string }; requests: { memory: string } }
const resourcesOf = ({ spec }: Thing) =>
  (spec as { template: { spec: { containers: { resources: Resources }[] } } }).template.spec.containers[0]!.resources

const spacing = () =>
  group("rules: spacing", async (ns, check) => {
    const names = ["one", "two", "three"]
    for (const name of names) await ns.create("jobs", failingJob({ name, labels }))
    const olds = await Promise.all(names.map((name) => ns.failed(name)))
    await ns.operator({ ...chosen, RESTART_DELAY: "0", RESTART_SPACING: "5s" })
    await check("three Jobs that are due at once come back 5 s apart", async () => {
      const times = (await Promise.all(olds.map((old) => ns.another(old)))).map(createdAt).sort((a, b) => a - b)
      const gaps = times.slice(1).map((at, i) => at - times[i]!)
      need(
        gaps.every((gap) => gap >= 4_000 && gap <= 20_000),
        `gaps ${gaps.join(", ")} ms`,
      )
      return `gaps of ${gaps.map(seconds).join(" and ")} (whole seconds)`
    })
  })

const annotations = () =>
  group("rules: annotations", async (ns, check) => {
    const operator = await ns.operator(chosen)
    const paused = { [`${prefix}paused`]: "true", [`${prefix}restart-delay`]: "0" }
    await ns.create("jobs", failingJob({ name: "now", labels }))
    await ns.create("jobs", failingJob({ name: "paused", labels, annotations: paused }))
    await ns.create("jobs", failingJob({ name: "wrong", labels, annotations: { [`${prefix}restart-delay`]: "soon" } }))
    await ns.create(
      "jobs",
      failingJob({
        name: "limited",
        labels,
        annotations: { [`${prefix}restart-delay`]: "0", [`${prefix}max-restarts`]: "2" },
      }),
    )
    await check("restart-now: a failed Job comes back at once, and the value counts once", async () => {
      const old = await ns.failed("now")
      await Bun.sleep(1_000)
      need((await ns.job("now"))?.metadata.uid === old.metadata.uid, "restarted unasked")
      await ns.patch("jobs", "now", annotate({ "restart-now": "please" }))
      const young = await ns.another(old, 5_000)
      need(mark(young, "restart-now-done") === "please", `restart-now-done ${mark(young, "restart-now-done")}`)
      await ns.failed("now")
      await Bun.sleep(2_000)
      need((await ns.job("now"))?.metadata.uid === young.metadata.uid, "the same value fired again")
    })
    await check("paused: left alone until the annotation is taken away", async () => {
      const old = await ns.failed("paused")
      await operator.says("that it is paused", ["paused", "left alone"])
      await Bun.sleep(1_500)
      need((await ns.job("paused"))?.metadata.uid === old.metadata.uid, "restarted although paused")
      await ns.patch("jobs", "paused", annotate({ paused: null }))
      await ns.another(old, 5_000)
    })
    await check("a wrong annotation is said as a WARNING, and the operator's own value holds", async () => {
      const line = await operator.says("the mistake", ["wrong", "restart-delay", "soon"])
      need(line.includes("WARNING"), line)
      await operator.says("the operator's delay", ["/wrong]", "restarted at", /in (1h|59m)/])
      return line
    })
    await check("max-restarts: after two restarts in a row the Job is left", async () => {
      await operator.says("that it is given up", ["limited", "given up", "2 times"])
      const job = await ns.job("limited")
      need(job && mark(job, "restarts") === "2", `restarts ${job && mark(job, "restarts")}`)
    })
  })

export const ruleGroups = () => [causes(), memory(), spacing(), annotations()]
