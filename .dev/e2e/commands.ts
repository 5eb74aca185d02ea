// The history and the commands on a real cluster: real failures, an admin's kubeconfig, beside an operator and without
// one.

import {
  binary,
  type Check,
  call,
  calls,
  counted,
  failedAt,
  failingJob,
  group,
  jobThat,
  type Namespace,
  need,
  type Operator,
  oomJob,
  prefix,
  runningJob,
  Skip,
  succeedingJob,
  suspendedJob,
  type Thing,
  until,
  work,
} from "./kit.ts"
import { kubectl } from "./programs.ts"

const labels = { e2e: "yes" }
const chosen = { JOB_SELECTOR: "e2e=yes", RESTART_DELAY: "1h" }
type Record_ = Thing & { data: Record<string, string>; immutable?: boolean }
const mark = (thing: Thing | undefined, name: string) => thing?.metadata.annotations?.[prefix + name]

/** The program as an admin runs it: a kubeconfig, and nothing else in the environment. */
async function command(ns: Namespace, line: string) {
  const env = { KUBECONFIG: process.env.KUBECONFIG ?? "", HOME: work }
  const child = Bun.spawn([binary, ...line.split(" "), "-n", ns.name], {
    env,
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  })
  const [out, err, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited])
  return { code, out, err, json: () => JSON.parse(out) as never }
}
export async function answered(ns: Namespace, line: string): Promise<string> {
  const { code, out, err } = await command(ns, line)
  need(code === 0, `${line}: exit code ${code}: ${out}${err}`)
  return out
}
const records = async (ns: Namespace, job?: string) =>
  ((await ns.list("configmaps")) as Record_[]).filter(
    ({ metadata: { labels: l } }) =>
      l?.[`${prefix}record`] === "failure" && (job === undefined || l[`${prefix}job`] === job),
  )
const recorded = (ns: Namespace, job: string, count = 1) =>
  until(`${count} records of ${job}`, async () => {
    const all = await records(ns, job)
    return all.length >= count ? all : undefined
  })

// ---------------------------------------------------------------- the four commands, against real failures

const four = () =>
  group("commands: four", async (ns, check) => {
    const rules = "oom=never, log:/invalid token/=never, exit:3=2h"
    const operator = await ns.operator({ ...chosen, RESTART_RULES: rules })
    await ns.create("jobs", jobThat("echo signing in; echo token=hunter2; exit 3", { name: "alice", labels }))
    await ns.create("jobs", jobThat("echo invalid token; exit 5", { name: "bob", labels }))
    await oomKilled(ns)
    await ns.create("jobs", runningJob({ name: "runs", labels }))
    await ns.create("jobs", succeedingJob({ name: "done", labels }))
    await ns.create("jobs", suspendedJob({ name: "held", labels }))
    await ns.create("jobs", failingJob({ name: "unchosen" }))
    for (const name of ["alice", "bob", "hungry"]) await recorded(ns, name)
    await until("one has succeeded", async () =>
      (await ns.job("done"))?.status?.conditions?.some(({ type }) => type === "Complete"),
    )
    await reads(ns, check)
    await restarts(ns, check, operator)
  })

/**
 * A Job named `hungry` whose kill the kubelet has reported: one that it takes for another error is deleted and made
 * again.
 */
async function oomKilled(ns: Namespace): Promise<void> {
  const reported = new Set<string>()
  await ns.watch("pods", (_, { metadata, status }) => {
    if (JSON.stringify(status).includes('"OOMKilled"')) reported.add(metadata.ownerReferences?.[0]?.uid ?? "")
  })
  for (let tries = 4; tries > 0; tries--) {
    const { metadata } = await ns.create("jobs", oomJob({ name: "hungry", labels }))
    await ns.failed("hungry")
    if (reported.has(metadata.uid)) return
    await call("DELETE", ns.path("jobs", "hungry"), { propagationPolicy: "Background" })
  }
  throw new Error("four times the kubelet did not say OOMKilled")
}

async function reads(ns: Namespace, check: Check): Promise<void> {
  await check(
    "status, without a setting of its own: each chosen Job with state, cause and why, as table and as JSON",
    async () => {
      const out = await answered(ns, "status")
      const rows: [string, RegExp][] = [
        ["alice", /waiting +in (2h|1h59m\w+) +exit:3 +1 +\w+ ago +rule exit:3=2h/],
        ["bob", /given_up +exit:5 +1 +\w+ ago +rule log:\/invalid token\/=never/],
        ["hungry", /given_up +oom +1 +\w+ ago +rule oom=never/],
        ["runs", /running +0 +it is running/],
        ["done", /succeeded +0 +it has succeeded/],
        ["held", /suspended +0 +it is suspended/],
      ]
      for (const [name, row] of rows)
        need(new RegExp(`^${name} +${row.source}$`, "m").test(out), `${name}, ${row.source}: ${out}`)
      need(!out.includes("unchosen") && !out.includes("\u001b"), out)
      const { jobs, settings } = JSON.parse(await answered(ns, "status -o json")) as {
        jobs: { job: string }[]
        settings: string
      }
      need(jobs.length === rows.length && settings.startsWith("as the operator wrote them"), settings)
      return out.split("\n")[1]
    },
  )
  await check("history: what failed, and of one Job all that was seen, without its secret", async () => {
    const table = await answered(ns, "history")
    need(/Z +alice +exit:3 +1 +main: exit code 3, Error +to be restarted at .*: rule exit:3=2h$/m.test(table), table)
    need(/Z +hungry +oom +1 +main: exit code 137, OOMKilled +given up: rule oom=never$/m.test(table), table)
    const one = await answered(ns, "history alice")
    need(/container main \(exit code 3, Error[\s\S]*\| signing in[\s\S]*\| token=\*\*\*/.test(one), one)
    const [{ logs }] = JSON.parse(await answered(ns, "history alice -o json")) as [
      { logs: Record<string, { lines: string[] }> },
    ]
    need(Bun.deepEquals(Object.values(logs)[0]?.lines, ["signing in", "token=***"]), JSON.stringify(logs))
    return table.trimEnd().split("\n").at(-1)
  })
  await check("explain: the decision, the settings, the rule that matched and those that did not", async () => {
    const out = await answered(ns, "explain bob")
    for (const part of [
      /oom=never does not match/,
      /log:\/invalid token\/=never matches/,
      /exit:3=2h is not reached/,
      /RESTART_DELAY=1h/,
    ])
      need(part.test(out), out)
    const { rules } = JSON.parse(await answered(ns, "explain bob -o json")) as { rules: { verdict: string }[] }
    need(rules.length === 3 && rules[1]?.verdict === "matches", JSON.stringify(rules))
  })
  await check("each record is an immutable ConfigMap, and kubectl alone shows the failures", async () => {
    const all = await records(ns)
    need(all.length === 3 && all.every(({ immutable }) => immutable), `${all.length} records`)
    const annotation = `.metadata.annotations.${prefix.replaceAll(".", "\\.")}`
    const columns = `FAILED:${annotation}failed-at,SUMMARY:${annotation}summary`
    const out = await kubectl(
      "-n",
      ns.name,
      "get",
      "configmaps",
      "-l",
      `${prefix}record=failure`,
      "-o",
      `custom-columns=${columns}`,
    )
    need(/main: exit code 3, Error/.test(out), out)
    return out.split("\n").at(-1)
  })
}

async function restarts(ns: Namespace, check: Check, operator: Operator): Promise<void> {
  await check("restart refuses, all at once, what runs, is suspended or is not there, and asks first", async () => {
    const { code, err } = await command(ns, "restart runs held none --yes")
    need(code === 3 && err.split("\n").length === 4, `exit code ${code}: ${err}`)
    const unasked = await command(ns, "restart alice")
    need(unasked.code === 2 && /--yes/.test(unasked.err), `exit code ${unasked.code}: ${unasked.err}`)
    return err.split("\n")[0]
  })
  await check(
    "restart, beside the operator, of a failed and of a finished Job: both are new, their pods run, no intent is left",
    async () => {
      const olds = [await ns.job("alice"), await ns.job("done")] as Thing[]
      const out = await answered(ns, "restart alice done --yes")
      const alice = await ns.another(olds[0]!)
      const done = await ns.another(olds[1]!)
      for (const young of [alice, done]) need(out.includes(`restarted  new uid ${young.metadata.uid}`), out)
      need(
        mark(alice, "last-cause") === "exit:3" && mark(done, "restarts") === "0",
        JSON.stringify([alice, done].map((j) => j.metadata.annotations)),
      )
      await ns.noIntent()
      await ns.failed("alice")
      await until("done again", async () =>
        (await ns.job("done"))?.status?.conditions?.some(({ type }) => type === "Complete"),
      )
      const listed = await kubectl("-n", ns.name, "get", "jobs", "alice", "done")
      await recorded(ns, "alice", 2)
      need(
        operator.lines.filter((line) => /ERROR/.test(line) && /alice|done/.test(line)).length === 0,
        operator.lines.join("\n"),
      )
      return listed.split("\n").slice(1).join("; ").replaceAll(/ +/g, " ")
    },
  )
  await check("without an operator: status is the same, a failed Job comes back with its evidence kept", async () => {
    await operator.stop()
    const before = (await answered(ns, "status")).split("\n").map((line) => line.split(/ +/).slice(0, 2).join(" "))
    await ns.create("jobs", failingJob({ name: "later", labels, exitCode: 9 }))
    const old = await ns.failed("later")
    const out = await answered(ns, "restart later --yes")
    await ns.another(old)
    const [record] = await recorded(ns, "later")
    need(
      mark(record, "uid") === old.metadata.uid && mark(record, "cause") === "exit:9",
      JSON.stringify(record?.metadata.annotations),
    )
    need(before.includes("alice waiting") && before.includes("bob given_up"), before.join("; "))
    return out.split("\n")[1]
  })
}

// ---------------------------------------------------------------- the history

const survives = () =>
  group("commands: history", async (ns, check) => {
    const operator = await ns.operator({
      JOB_SELECTOR: "e2e=yes",
      RESTART_DELAY: "0",
      HISTORY_LIMIT: "2",
      MAX_RESTARTS: "3",
    })
    await ns.create("jobs", jobThat("echo run of $(hostname); exit 4", { name: "loop", labels }))
    await operator.says("that it is given up", ["loop", /given up/], 120_000)
    await check("of four failures of a Job the last HISTORY_LIMIT=2 are kept", async () => {
      const kept = await until("two records", async () => {
        const all = await records(ns, "loop")
        return all.length === 2 && all.some((record) => mark(record, "restarts") === "3") ? all : undefined
      })
      need(
        kept
          .map((record) => mark(record, "restarts"))
          .sort()
          .join() === "2,3",
        kept.map((r) => mark(r, "restarts")).join(),
      )
      return kept.map((record) => `${record.metadata.name} ${mark(record, "decided")}`).join("; ")
    })
    await check("kubectl describe job tells the story: failures seen, restarted, given up", async () => {
      const job = await ns.job("loop")
      const out = await until("the Events", async () => {
        const text = await kubectl("-n", ns.name, "describe", "job", "loop")
        return /Restarted/.test(text) && /GivenUp/.test(text) ? text : undefined
      })
      const all = (await ns.list("events")) as (Thing & { reason: string; involvedObject: { name: string } })[]
      const reasons = all.filter(({ involvedObject }) => involvedObject.name === "loop").map(({ reason }) => reason)
      for (const reason of ["FailureSeen", "Restarted", "GivenUp"])
        need(reasons.includes(reason), `${reason}: ${reasons.join(", ")}`)
      need(job && failedAt(job), "it is not failed")
      return out
        .split("\n")
        .filter((line) => /Restarted|GivenUp/.test(line))
        .join("; ")
        .replaceAll(/ +/g, " ")
    })
    await check("it survives the operator, the Job and its pods", async () => {
      await operator.stop()
      await kubectl("-n", ns.name, "delete", "jobs", "--all")
      await until("no pods", async () => (await ns.list("pods")).length === 0)
      const out = await answered(ns, "history loop")
      need(out.match(/\| run of loop-/g)?.length === 2, out)
      return out.split("\n")[0]
    })
  })

const twice = () =>
  group("commands: two operators", async (ns, check) => {
    const env = { ...chosen, RESTART_DELAY: "2s", MAX_RESTARTS: "1" }
    const operators = await Promise.all([ns.operator(env), ns.operator(env)])
    for (const name of ["one", "two", "three"]) await ns.create("jobs", failingJob({ name, labels }))
    await check("with two operators each failure is recorded once", async () => {
      for (const operator of operators)
        for (const name of ["one", "two", "three"])
          await operator.says("that it is given up", [`/${name}]`, /given up/], 90_000)
      for (const name of ["one", "two", "three"]) await recorded(ns, name, 2)
      await Bun.sleep(2_000)
      const all = await records(ns)
      const failures = new Set(all.map((record) => `${mark(record, "uid")} ${mark(record, "failed-at")}`))
      need(all.length === 6 && failures.size === 6, `${all.length} records of ${failures.size} failures`)
      const complaints = operators.flatMap(({ lines }) => lines.filter((line) => /not recorded|records/.test(line)))
      need(complaints.length === 0, complaints.join("\n"))
      if (!counted) return
      const creates = (await calls(ns)).filter(({ verb, what }) => verb === "create" && what === "configmaps")
      return `${all.length} records; ${creates.map(({ code }) => code).join(", ")}`
    })
  })

const oldRole = () =>
  group("commands: old Role", async (ns, check) => {
    const operator = await ns.operator({ ...chosen, RESTART_DELAY: "0", CHECK_INTERVAL: "2", MAX_RESTARTS: "1" }, "old")
    await ns.create("jobs", failingJob({ name: "plain", labels }))
    await check("with the Role of the Python operator all goes on without a history; it is said once", async () => {
      await operator.says("that it is given up", ["plain", /given up/], 90_000)
      const said = operator.saying(/configmaps/i)
      need(said.length === 5 && /create configmaps: failures are not recorded/.test(said.join()), said.join("\n"))
      need((await records(ns)).length === 0, "there are records")
      if (!counted) throw new Skip("calls are not counted")
      const asked = (await calls(ns, "old")).filter(({ what }) => what === "configmaps")
      need(asked.length === 0, `${asked.length} calls`)
    })
    await check(
      "the commands then go by the environment's settings or, as here, show every Job, and say so",
      async () => {
        const { code, err } = await command(ns, "status")
        need(
          code === 0 && /the defaults, for every Job; no operator has written any/.test(err),
          `exit code ${code}: ${err}`,
        )
        return err.split("\n")[0]
      },
    )
  })

export const commandGroups = () => [four(), survives(), twice(), oldRole()]
