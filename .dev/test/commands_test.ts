// cli.ts: the commands of an admin's shell, as processes against the embedded API server over real HTTPS, beside an
// operator and without one, in a pipe and on a terminal.
import { describe, expect, test } from "bun:test"
import { join } from "node:path"
import { draftOf, INTENT, intentFor, PREFIX, RECORD, type Job as RealJob } from "../../operator.ts"
import type { Job } from "../apiserver/model.ts"
import {
  allBack,
  callsOf,
  cronOwned,
  current,
  deletions,
  endings,
  exits,
  failedAgo,
  folder,
  HELD,
  intents,
  kubectlDelete,
  live,
  person,
  release,
  run,
  type Server,
  serve,
  stand,
  tidyUp,
  until,
} from "./acting_kit.ts"

tidyUp()
const program = join(import.meta.dir, "../../operator.ts")
const plain = { HOME: folder, PATH: process.env.PATH ?? "" }

/** Runs the program in a pipe, without anything in its environment but this; `during` may end it. */
async function command(
  server: Server,
  line: string,
  env: Record<string, string> = {},
  during: (child: Bun.Subprocess) => unknown = () => {},
) {
  const KUBECONFIG = server.writeKubeconfig(join(folder, "admin"))
  const child = Bun.spawn([process.execPath, program, ...line.split(" ").filter(Boolean)], {
    env: { ...plain, KUBECONFIG, ...env },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  })
  endings.push(() => child.kill("SIGKILL"))
  const [out, err, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited, during(child)])
  return {
    code,
    out,
    err,
    json: () => JSON.parse(out),
    rows: () =>
      out
        .trimEnd()
        .split("\n")
        .map((row) => row.split(/ {2,}/)),
  }
}

/** The same on a terminal of so many columns; `answer` is typed. */
async function onTerminal(server: Server, line: string, columns: number, { answer = "", env = {} } = {}) {
  const KUBECONFIG = server.writeKubeconfig(join(folder, "admin"))
  const shown: string[] = []
  const closed = Promise.withResolvers<void>()
  const child = Bun.spawn([process.execPath, program, ...line.split(" ")], {
    env: { ...plain, TERM: "xterm", KUBECONFIG, ...env },
    terminal: {
      cols: columns,
      rows: 24,
      data: (_, data) => void shown.push(Buffer.from(data).toString()),
      exit: () => closed.resolve(),
    },
  })
  endings.push(() => child.kill("SIGKILL"))
  if (answer) await until("asked", () => /\? \[y\/N\]/.test(shown.join("")))
  if (answer) child.terminal?.write(`${answer}\r`)
  const code = await child.exited
  await closed.promise
  const screen = shown.join("")
  return {
    code,
    screen,
    lines: screen
      .split("\r\n")
      .map((text) => Bun.stripANSI(text))
      .filter(Boolean),
  }
}

/** Settings as an operator has left them, which does not run. */
async function settled(settings: Record<string, string> = {}, server?: Server) {
  const there = server ?? (await serve())
  const life = live(there, { JOB_SELECTOR: "app!=other", ...settings })
  await until("settings", () => callsOf(there, "create", "configmaps").some(({ status }) => status === 201))
  await until("quiet", () => life.scheduled().length === 0 || settings.RESTART_DELAY)
  life.stop()
  await life.done
  return there
}
const EXIT_3 = { RESTART_DELAY: "3600", RESTART_RULES: "oom=0s..1h, exit:3=2h, log:/never again/=never, any=1d" }

describe("status", () => {
  test("tells each Job's state, cause, next restart and why, by the operator's settings", async () => {
    const server = await serve()
    stand(server, "runs", { status: {} })
    stand(server, "other")
    stand(server, "paused", { metadata: { annotations: { [`${PREFIX}paused`]: "true" } } })
    run(server, "alice", [exits(3, "x\n")])
    run(server, "bob", [exits(4, "never again\n")])
    await until("failed", () => ["alice", "bob"].every((name) => server.model.job("default", name)?.status.failed))
    const life = live(server, { JOB_SELECTOR: "app!=other", ...EXIT_3 })
    await until("recorded", () => callsOf(server, "create", "configmaps").length >= 3)
    life.stop()
    await life.done
    const { code, out, err, rows } = await command(server, "status")
    expect([code, err]).toEqual([
      0,
      expect.stringMatching(/^settings as the operator wrote them in default at \d{4}-.*Z\n$/),
    ])
    for (const sign of "│┌\u001b") expect(out).not.toContain(sign)
    const [head, ...jobs] = rows()
    expect(head).toEqual(["JOB", "STATE", "NEXT RESTART", "CAUSE", "IN A ROW", "LAST FAILURE", "WHY"])
    const near = expect.stringMatching(/^(\d+s|0s) ago$/)
    expect(jobs).toEqual([
      ["alice", "waiting", expect.stringMatching(/^in (2h|1h59m\d+s)$/), "exit:3", "1", near, "rule exit:3=2h"],
      ["bob", "given_up", "exit:4", "1", near, "rule log:/never again/=never"],
      ["paused", "left_alone", "unknown", "1", near, expect.stringContaining("paused is true")],
      ["runs", "running", "0", "it is running"],
    ])
    const { settings, jobs: facts } = (await command(server, "status -o json")).json()
    expect(settings).toMatch(/^as the operator wrote them/)
    expect(facts[0]).toMatchObject({
      job: "default/alice",
      state: "waiting",
      cause: "exit:3",
      failuresInRow: 1,
      why: "rule exit:3=2h",
    })
    expect(Date.parse(facts[0].nextRestartAt) - Date.parse(facts[0].lastFailureAt)).toBe(7_200_000)
  })

  test("counts failures in a row as the operator does: from 1 again once the owner has changed the Job", async () => {
    const server = await serve()
    const annotations = { [`${PREFIX}restarts`]: "5", [`${PREFIX}created`]: "what it was" }
    stand(server, "changed", { metadata: { annotations }, status: failedAgo(0) })
    const show = async () => (await command(server, "status -o json")).json().jobs
    const seen = [{ state: "waiting", failuresInRow: 1, failures: [{ restarts: 0 }] }]
    expect(await show()).toMatchObject(seen)
    const life = live(server, { RESTART_DELAY: "3600", MAX_RESTARTS: "5" })
    await until("recorded", () => callsOf(server, "create", "configmaps").length > 1)
    life.stop()
    await life.done
    expect(await show()).toMatchObject(seen)
  })

  test("of several rejections of a restart the newest is told, whatever the names of their Events", async () => {
    const server = await settled({ RESTART_DELAY: "3600" })
    const job = stand(server, "load-a", { status: failedAgo(7_200_000) })
    for (const [suffix, minutesAgo, message] of [
      ["b", 3, "before"],
      ["a", 1, "now"],
      ["c", 2, "earlier"],
    ] as const)
      server.model.put({
        kind: "Event",
        metadata: { name: `load-a.${suffix}`, namespace: "default" },
        involvedObject: { kind: "Job", namespace: "default", name: "load-a", uid: job.metadata.uid },
        reason: "CannotRestart",
        message,
        lastTimestamp: new Date(Date.now() - minutesAgo * 60_000).toISOString(),
      } as unknown as Parameters<typeof server.model.put>[0])
    const { json } = await command(server, "status -o json")
    expect(json().jobs).toMatchObject([{ state: "rejected", why: "now" }])
    expect((await onTerminal(server, "status", 80)).screen).toContain("\u001b[31mload-a")
  })

  test("without an operator's settings goes by the environment's, else by the defaults for every Job", async () => {
    const server = await serve()
    stand(server, "load-a", { status: failedAgo(0) })
    const own = await command(server, "status", { JOB_NAMES: "load-a", RESTART_DELAY: "60" })
    expect([own.code, own.err, own.rows()[1]?.slice(0, 2)]).toEqual([
      0,
      "settings of the environment; no operator has written any in default\n",
      ["load-a", "waiting"],
    ])
    const none = await command(server, "status")
    expect([none.code, none.err, none.rows()[1]?.slice(0, 2)]).toEqual([
      0,
      "settings are the defaults, for every Job; no operator has written any in default\n",
      ["load-a", "waiting"],
    ])
  })

  test("shows a restart that was left unfinished, also where its Job is away", async () => {
    const server = await serve()
    const job = stand(server, "held", HELD)
    const life = live(server, {})
    await until("an intent", () => current(server, job)?.metadata.deletionTimestamp)
    life.kill()
    await life.done
    release(server, "held")
    await until("gone", () => !current(server, job))
    expect((await command(server, "status")).rows()[1]).toEqual([
      ...["held", "restarting", "unknown", "1"],
      expect.stringContaining("ago"),
      expect.stringMatching(/^intent held-restart-/),
    ])
  })

  test("a Job that its TTL took early waits for its due time, but not where a person asks for it", async () => {
    const server = await serve()
    const job = stand(server, "taken", {
      spec: { ttlSecondsAfterFinished: 5 },
      status: failedAgo(3_600_000),
    }) as unknown as RealJob
    const additions = { annotations: { [`${PREFIX}restarted-from`]: job.metadata?.uid ?? "" }, memory: {} }
    const intent = intentFor(draftOf({ live: job, additions, dueAt: Date.now() + 3_600_000 }))
    server.model.put(intent as unknown as Job)
    person(server, "delete", "taken")
    await until("gone", () => !server.model.job("default", "taken"))
    const sight = (await command(server, "status", { JOB_NAMES: "taken" })).rows()[1]
    expect(sight?.slice(0, 3)).toEqual(["taken", "waiting", expect.stringMatching(/^in (59m|1h)/)])
    expect((await command(server, "explain taken", { JOB_NAMES: "taken" })).out).toMatch(
      /waiting, next restart in .*\ndecision +.*restarted at .*recorded in intent taken-restart-/,
    )
    const restart = await command(server, "restart taken --yes", { JOB_NAMES: "taken" })
    expect([restart.code, restart.out]).toEqual([0, expect.stringMatching(/taken +restarted/)])
  })

  test("has colours on a terminal unless they are not wanted, and leaves no column out", async () => {
    const server = await settled(EXIT_3)
    stand(server, "a-job-with-a-name", { status: failedAgo(0) })
    const { screen, lines } = await onTerminal(server, "status", 40)
    expect(screen).toContain("\u001b[33ma-job-with-a-name")
    expect(lines[1]).toContain("WHY")
    for (const env of [{ NO_COLOR: "1" }, { TERM: "dumb" }])
      expect((await onTerminal(server, "status", 80, { env })).screen).not.toContain("\u001b[33m")
    expect((await onTerminal(server, "status --no-color", 80)).screen).not.toContain("\u001b[33m")
  }, 20_000)

  test.each([{}, { suspend: true }])("a forged intent makes no Job that has not ended wait: %j", async (spec) => {
    const server = await serve()
    stand(server, "load-a", { spec, status: {} })
    const status = () => server.model.job("default", "load-a")?.status
    await until("the Job controller has seen it", () => Object.keys(status() ?? {}).length > 0)
    const live = server.model.job("default", "load-a") as RealJob
    const draft = draftOf({ live, additions: { annotations: {}, memory: {} }, dueAt: Date.now() + 3_600_000 })
    person(server, "create", "", intentFor(draft))
    const { rows } = await command(server, "status")
    expect(rows().at(-1)?.slice(0, 2)).toEqual(["load-a", spec.suspend ? "suspended" : "running"])
  })

  test.each([{ annotations: { [`${PREFIX}group`]: { toString: 1 } } }, { finalizers: 5 }])(
    "a forged intent that cannot be understood hides no Job: %j",
    async (forged) => {
      const server = await serve()
      const none = { annotations: { [`${PREFIX}created`]: "x" }, memory: {} }
      const draft = draftOf({ live: stand(server, "gone") as RealJob, additions: none, dueAt: undefined })
      const annotations = { ...draft.replacement.metadata?.annotations, ...forged.annotations }
      const metadata = { ...draft.replacement.metadata, ...forged, annotations } as never
      person(server, "create", "", intentFor({ ...draft, replacement: { ...draft.replacement, metadata } }))
      kubectlDelete(server, "gone")
      stand(server, "load-a")
      const { code, rows } = await command(server, "status")
      expect([code, rows().at(-1)?.slice(0, 2)]).toEqual([0, ["load-a", "waiting"]])
    },
  )
})

describe("history", () => {
  /** Two recorded failures, of which nothing else is left: no operator, no Jobs, no pods. */
  async function recorded() {
    const server = await serve()
    const life = live(server, EXIT_3)
    run(server, "alice", [exits(3, "signing in\ntoken=hunter2\n")])
    run(server, "bob", [exits(4, "y\n")])
    await until("recorded", () => callsOf(server, "create", "configmaps").length === 3)
    life.stop()
    await life.done
    for (const name of ["alice", "bob"]) person(server, "delete", name, { propagationPolicy: "Background" })
    await until("gone", () => server.model.objects.jobs!.size + server.model.pods().length === 0)
    return server
  }

  test("is a table of past failures", async () => {
    const table = await command(await recorded(), "history")
    expect([table.code, table.rows()[0]]).toEqual([0, ["FAILED", "JOB", "CAUSE", "IN A ROW", "HOW IT ENDED", "THEN"]])
    expect(
      table
        .rows()
        .slice(1)
        .toSorted((a, b) => (a[1]! < b[1]! ? -1 : 1)),
    ).toEqual([
      [
        expect.stringMatching(/^\d{4}-.*Z$/),
        "alice",
        "exit:3",
        "1",
        "main: exit code 3, Error",
        expect.stringMatching(/^to be restarted at .*: rule exit:3=2h$/),
      ],
      [expect.anything(), "bob", "exit:4", "1", expect.anything(), expect.stringContaining("rule any=1d")],
    ])
  })

  test("of a JOB has everything that was observed of its failures", async () => {
    const server = await recorded()
    const one = await command(server, "history alice")
    expect(one.out).toMatch(
      /^\S+Z exit:3, BackoffLimitExceeded, .*; failure 1 in a row; to be restarted at .*\n {4}pod /,
    )
    expect(one.out).toMatch(/\n {4}pod alice-\w+ \(Failed.*\n {6}container main \(exit code 3/)
    expect(one.out).toMatch(/\| signing in\n.*\| token=\*\*\*\n/)
    const [record] = (await command(server, "history default/alice -o json")).json()
    expect(record).toMatchObject({
      job: "alice",
      cause: "exit:3",
      pods: [{ containers: [{ name: "main", exitCode: 3 }] }],
    })
    expect(Object.values(record.logs)).toEqual([{ lines: ["signing in", "token=***"] }])
  })

  test("has no colours: a Job may be called like a state", async () => {
    const server = await serve()
    const life = live(server, EXIT_3)
    stand(server, "waiting")
    await until("recorded", () => callsOf(server, "create", "configmaps").length === 2)
    life.stop()
    const { screen } = await onTerminal(server, "history", 200)
    expect([screen.includes("Z  waiting"), screen.includes("\u001b[33m")]).toEqual([true, false])
    expect((await onTerminal(server, "status", 200)).screen).toContain("\u001b[33mwaiting")
  })

  test("has the failures of a Job whose name is too long for a label", async () => {
    const server = await serve()
    const life = live(server, EXIT_3)
    const name = `load-${"a".repeat(70)}`
    const selector = { manualSelector: true, selector: { matchLabels: { app: "own" } } }
    stand(server, name, { spec: selector, metadata: { labels: {} } })
    await until("written", () => callsOf(server, "create", "configmaps").length > 1)
    expect(life.factsOf("WriteFailed")).toEqual([])
    expect((await command(server, "history")).rows()[1]?.[1]).toBe(name)
    expect((await command(server, `history ${name} -o json`)).json()).toMatchObject([{ job: name, cause: "unknown" }])
    expect((await command(server, "status -o json")).json().jobs).toMatchObject([{ failures: [{ job: name }] }])
  })

  test("of a Job that is unknown is exit code 3", async () => {
    expect(await command(await recorded(), "history carol")).toMatchObject({
      code: 3,
      err: expect.stringContaining("there is no Job default/carol"),
    })
  })

  test("shows the records of a Job from the oldest to the newest, whatever their names", async () => {
    const server = await settled()
    const days = { "load-a-b": "02", "load-a-c": "01", "load-a-a": "03" }
    for (const [name, day] of Object.entries(days)) {
      const labels = { [RECORD]: "failure", [`${PREFIX}job`]: "load-a" }
      const annotations = { [`${PREFIX}failed-at`]: `2026-03-${day}T00:00:00Z` }
      server.model.put({
        kind: "ConfigMap",
        metadata: { name, labels, annotations },
        data: { "failure.json": `{"pods":[]}` },
      })
    }
    for (const line of ["history", "history load-a"]) {
      const { out } = await command(server, line)
      expect([...out.matchAll(/^2026-03-(\d\d)/gm)].map(([, day]) => day)).toEqual(["01", "02", "03"])
    }
  })

  test("text of a forged record breaks no line and drives no terminal", async () => {
    const server = await settled()
    const text = "\u001b[2J\nforged"
    server.model.put({
      kind: "ConfigMap",
      metadata: {
        name: "forged",
        labels: { [RECORD]: "failure", [`${PREFIX}job`]: "load-a" },
        annotations: { [`${PREFIX}summary`]: text, [`${PREFIX}decided`]: text },
      },
      data: {
        "failure.json": JSON.stringify({
          reason: text,
          pods: [{ name: text, containers: [{ name: text, message: text }] }],
        }),
      },
    })
    for (const line of ["history", "history load-a", "history load-a -o json"]) {
      const { code, out } = await command(server, line)
      expect([code, out.includes("\u001b"), /^forged/m.test(out)]).toEqual([0, false, false])
      expect(out).toContain("\\u{1b}".slice(1))
    }
  })
})

describe("restart", () => {
  test("brings a failed and a finished Job back, keeps the evidence, and says how to cancel it", async () => {
    const server = await settled()
    run(server, "alice", [exits(3, "x\n"), {}], { spec: { backoffLimit: 0 } })
    const held = stand(server, "held", { ...HELD, status: { conditions: [{ type: "Complete", status: "True" }] } })
    await until("failed", () => server.model.job("default", "alice")?.status.failed)
    const alice = server.model.job("default", "alice")!
    const running = command(server, "restart alice held --yes -o json")
    await until("deleted", () => current(server, held)?.metadata.deletionTimestamp)
    const from = server.calls.length
    await until(
      "looked at it twice",
      () =>
        callsOf(server, "get", "jobs", (call) => call.name === "held" && server.calls.indexOf(call) > from).length > 1,
    )
    release(server, "held")
    const { code, json, err } = await running
    const done = json() as { job: string; result: string; details: string }[]
    expect([code, done.map(({ job, result }) => [job, result])]).toEqual([
      0,
      [
        ["default/alice", "restarted"],
        ["default/held", "restarted"],
      ],
    ])
    expect(err).toMatch(/\[default\/held\] its restart is recorded in intent held-restart-/)
    const marks = (job: Job) =>
      Object.fromEntries(
        ["restarts", "restarted-from", "last-cause"].map((mark) => [
          mark,
          current(server, job)?.metadata.annotations?.[PREFIX + mark],
        ]),
      )
    expect(marks(alice)).toEqual({ restarts: "1", "restarted-from": alice.metadata.uid, "last-cause": "exit:3" })
    expect(marks(held)).toEqual({
      restarts: "0",
      "restarted-from": held.metadata.uid,
      "last-cause": undefined as never,
    })
    expect(done[0]?.details).toBe(`new uid ${current(server, alice)?.metadata.uid}`)
    expect([intents(server), deletions(server, "alice").length]).toEqual([[], 1])
    const events = callsOf(server, "create", "events", ({ user }) => user === "admin").map(
      ({ body }) => (body as { involvedObject: { uid: string } }).involvedObject.uid,
    )
    expect(events.toSorted()).toEqual(
      [alice, held].map((job) => current(server, job)?.metadata.uid as string).toSorted(),
    )
    const records = [...server.model.objects.configmaps!.values()].filter(
      ({ metadata }) => metadata.labels?.[RECORD] === "failure",
    )
    expect(records.map(({ metadata }) => metadata.annotations?.[`${PREFIX}decided`])).toEqual([
      expect.stringContaining("a person asked for it"),
    ])
  })

  test("restarts none of the Jobs if one cannot be restarted, and names all that cannot", async () => {
    const server = await settled()
    stand(server, "runs", { status: { active: 1 } })
    stand(server, "suspended", { status: {}, spec: { suspend: true } })
    stand(server, "cron", { metadata: cronOwned(server) })
    stand(server, "good")
    const from = server.calls.length
    const { code, err, out } = await command(server, "restart runs suspended cron none good --yes")
    expect([code, out]).toEqual([3, ""])
    expect(err.trimEnd().split("\n")).toEqual([
      "error: default/runs is not restarted: it is running",
      "error: default/suspended is not restarted: it is suspended; set its spec.suspend to false instead",
      "error: default/cron is not restarted: it is owned by CronJob cron",
      "error: there is no Job default/none",
    ])
    expect(
      server.calls.slice(from).filter(({ user, verb }) => user === "admin" && verb !== "get" && verb !== "list"),
    ).toEqual([])
  })

  test("a Job that is named twice, with and without its namespace, is restarted once", async () => {
    const server = await settled()
    const job = stand(server, "load-a")
    const { code, rows } = await command(server, "restart load-a default/load-a --yes")
    expect([code, rows().length, server.uids.get("default/load-a")?.length]).toEqual([0, 2, 2])
    expect(current(server, job)?.metadata.uid).not.toBe(job.metadata.uid)
  })

  test("of another namespace than -n names is a mistake, and nothing is done", async () => {
    const server = await settled()
    const job = stand(server, "load-a")
    const { code, err } = await command(server, "restart default/load-a --yes -n there", { JOB_NAMES: "load-a" })
    expect([code, current(server, job)?.metadata.uid]).toEqual([2, job.metadata.uid])
    expect(err).toContain('"default/load-a" names no Job in there')
  })

  test("wants --yes where it cannot ask", async () => {
    const server = await settled()
    stand(server, "load-a")
    const pipe = await command(server, "restart load-a")
    expect([pipe.code, pipe.err]).toEqual([2, "error: stdin is not a terminal; use --yes to skip confirmation\n"])
  })

  test("asks on a terminal", async () => {
    const server = await settled()
    const job = stand(server, "load-a")
    const no = await onTerminal(server, "restart load-a", 80, { answer: "n" })
    expect([no.code, current(server, job)?.metadata.uid]).toEqual([3, job.metadata.uid])
    const interrupted = await onTerminal(server, "restart load-a", 80, { answer: "\u0003" })
    expect([interrupted.code, current(server, job)?.metadata.uid]).toEqual([130, job.metadata.uid])
    expect(interrupted.screen).not.toContain("error")
    const yes = await onTerminal(server, "restart load-a", 80, { answer: "y" })
    expect([yes.code, current(server, job)?.metadata.uid === job.metadata.uid, intents(server)]).toEqual([0, false, []])
    expect(yes.screen).toContain("restart default/load-a (failed)? [y/N]")
  })

  test("beside an operator each Job is back once, and no one complains", async () => {
    const server = await serve()
    const life = live(server)
    await until("watching", () => callsOf(server, "watch").length > 0)
    const done = { conditions: [{ type: "Complete", status: "True" }] }
    const jobs = [
      stand(server, "done", { status: done }),
      stand(server, "waits", { metadata: { annotations: { [`${PREFIX}restart-delay`]: "1d" } } }),
    ]
    await until("seen", () => life.scheduled().length === 1)
    const { code } = await command(server, "restart done waits --yes")
    await allBack(server, jobs)
    expect([code, server.uids.get("default/done")?.length, server.uids.get("default/waits")?.length]).toEqual([0, 2, 2])
    expect(life.said.filter(({ level, text }) => level === "error" || /not restarted/.test(text))).toEqual([])
  })

  test("an operator that completes the restart between two looks of the command has cancelled nothing", async () => {
    const server = await settled()
    const held = stand(server, "held", HELD)
    const running = command(server, "restart held --yes")
    await until("looked at it", () => current(server, held)?.metadata.deletionTimestamp && intents(server).length === 1)
    const [intent] = intents(server)
    const from = server.calls.length
    await until("looked again", () => callsOf(server, "get", "jobs").some((call) => server.calls.indexOf(call) > from))
    let isCompleted = false
    const complete = () => {
      if (isCompleted || current(server, held)) return false
      isCompleted = true
      stand(server, "held", { status: {} })
      person(server, "delete", intent!.metadata.name, { propagationPolicy: "Background" })
      return false
    }
    server.fault({ verb: "get", name: intent!.metadata.name, when: complete }, { status: 500 })
    release(server, "held")
    expect(await running).toMatchObject({ code: 0, out: expect.stringMatching(/held +replaced +new uid/) })
    expect([isCompleted, server.uids.get("default/held")?.length]).toEqual([true, 2])
  })

  test("finishes a restart that was left unfinished", async () => {
    const server = await settled()
    const held = stand(server, "held", HELD)
    const life = live(server)
    await until("an intent", () => current(server, held)?.metadata.deletionTimestamp)
    life.kill()
    await life.done
    release(server, "held")
    await until("gone", () => !current(server, held))
    expect(await command(server, "restart held --yes")).toMatchObject({
      code: 0,
      out: expect.stringMatching(/default\/held +restarted +new uid/),
    })
  })

  test("restarts a Job beside the intent that its last restart left", async () => {
    const server = await settled()
    const old = stand(server, "load-a") as unknown as RealJob
    const marks = { [`${PREFIX}restarted-from`]: old.metadata?.uid ?? "" }
    const intent = intentFor(draftOf({ live: old, additions: { annotations: marks, memory: {} }, dueAt: undefined }))
    person(server, "delete", "load-a")
    await until("gone", () => !server.model.job("default", "load-a"))
    server.model.put(intent as unknown as Job)
    const job = stand(server, "load-a", { metadata: { annotations: marks } })
    const { code, out } = await command(server, "restart load-a --yes")
    const { uid } = current(server, job)!.metadata
    expect([code, out, uid === job.metadata.uid]).toEqual([0, expect.stringContaining(`new uid ${uid}`), false])
    expect([intents(server), deletions(server, "load-a").length]).toEqual([[], 1])
  })

  test("reports in the cluster's words what the cluster rejects, and leaves the Job", async () => {
    const server = await settled()
    const job = stand(server, "load-a")
    server.fault({ verb: "create", resource: "jobs" }, { status: 403, message: "exceeded quota" }, { times: 9 })
    const refused = await command(server, "restart load-a --yes")
    expect([refused.code, refused.out, current(server, job)?.metadata.uid]).toEqual([
      3,
      expect.stringContaining("exceeded quota"),
      job.metadata.uid,
    ])
  })
})

describe("explain", () => {
  test("tells the decision, its inputs, the rule that matched, those before and those after", async () => {
    const server = await settled(EXIT_3)
    run(server, "alice", [exits(3, "x\n")], {
      metadata: { annotations: { [`${PREFIX}group`]: "key", [`${PREFIX}max-restarts`]: "many" } },
    })
    await until("failed", () => server.model.job("default", "alice")?.status.failed)
    const from = server.calls.length
    const { code, out, rows } = await command(server, "explain alice")
    expect(code).toBe(0)
    const lists = server.calls.slice(from).filter(({ verb, resource }) => verb === "list" && resource === "jobs")
    expect(lists.map(({ query }) => query.labelSelector)).toEqual([`${INTENT}=alice`])
    expect(
      rows()
        .map((row) => row.slice(0, 2))
        .slice(0, 8),
    ).toEqual([
      ["job", expect.stringMatching(/^default\/alice, waiting, next restart in (2h|1h59m.*)$/)],
      ["decision", expect.stringMatching(/^to be restarted at .*Z: rule exit:3=2h$/)],
      ["failure", expect.stringMatching(/^exit:3 at .*Z, 1 in a row$/)],
      ["rules", "oom=0s..1h does not match"],
      ["", "exit:3=2h matches"],
      ["", "log:/never again/=never is not reached"],
      ["", "any=1d is not reached"],
      ["annotations", "group=key"],
    ])
    expect(out).toMatch(/problems +annotation .*max-restarts cannot be "many"/)
    expect(out).toMatch(/settings +as the operator wrote them[\s\S]*JOB_SELECTOR=app!=other[\s\S]*RESTART_DELAY=1h/)
    const facts = (await command(server, "explain alice -o json")).json()
    expect(facts).toMatchObject({
      state: "waiting",
      rules: [{}, { rule: "exit:3=2h", verdict: "matches" }, {}, {}],
      settings: { RESTART_DELAY: "1h" },
    })
    expect(await command(server, "explain none")).toMatchObject({
      code: 3,
      err: "error: there is no Job default/none\n",
    })
  })
})

describe("The command line", () => {
  const mistakes: [string, RegExp][] = [
    ["stat", /there is no command stat; there are status, history, restart, explain, dashboard/],
    ["status a", /write status/],
    ["status --frames", /Unknown option '--frames'/],
    ["status -o yaml", /-o is table or json/],
    ["status --yes", /--yes goes with restart/],
    ["status --port 1", /--port goes with dashboard/],
    ["status -n a,b", /-n is the name of one namespace/],
    ["restart -n", /'-n, --namespace <value>' argument missing/],
    ["restart", /write restart JOB\.\.\./],
    ["explain", /write explain JOB/],
    ["history a b", /write history \[JOB\]/],
    ["--no-color", /there is no command --no-color/],
    ["status --no-color=x", /'--no-color' does not take an argument/],
    ["dashboard --port 655360", /--port is a number from 0/],
    ["dashboard --port 65536", /--port is a number from 0/],
    ["dashboard load-a", /write dashboard/],
  ]
  test.each(["a,b", "-", "a-", "A"])("-n %s is a mistake: it is the name of one namespace", async (name) => {
    const { code, err } = await command(await settled(), `status --namespace=${name}`)
    expect([code, err]).toEqual([2, expect.stringContaining("-n is the name of one namespace")])
  })

  test("a mistake is told with exit code 2, and nothing is sent", async () => {
    const server = await serve()
    for (const [line, pattern] of mistakes) {
      const { code, out, err } = await command(server, line)
      expect([line, code, out, err.trimEnd().split("\n").length]).toEqual([line, 2, "", 1])
      expect(err).toMatch(new RegExp(`^error: .*${pattern.source}.*see --help$`, "m"))
    }
    expect(server.calls).toEqual([])
  }, 20_000)

  test("all mistakes of a command line are told at once", async () => {
    const { code, err } = await command(await serve(), "history a b -o yaml --yes --port x")
    expect([code, err.match(/^error: .*; see --help$/gm)?.length]).toEqual([2, 5])
  })

  test("context and namespace are the kubeconfig's unless -n, NAMESPACE or --context say otherwise", async () => {
    const server = await settled()
    const seen = async (line: string, env: Record<string, string> = {}) => {
      const from = server.calls.length
      const { code } = await command(server, line, env)
      return [code, server.calls.slice(from).find(({ resource }) => resource === "configmaps")?.namespace]
    }
    expect(await seen("status")).toEqual([0, "default"])
    expect(await seen("status -n there", { JOB_NAMES: "a", NAMESPACE: "here" })).toEqual([0, "there"])
    expect(await seen("status", { JOB_NAMES: "a", NAMESPACE: "here" })).toEqual([0, "here"])
    expect(await seen("--context embedded status")).toEqual([0, "default"])
    const wrong = await command(server, "status --context nowhere")
    expect([wrong.code, wrong.err]).toEqual([2, expect.stringContaining("nowhere")])
  }, 20_000)

  test("without an operator's settings, all namespaces of NAMESPACE are looked at, unless -n names one", async () => {
    const server = await serve()
    for (const namespace of ["here", "there"]) stand(server, "load-a", { namespace })
    const env = { NAMESPACE: "here, there", JOB_NAMES: "here/load-a, there/load-a" }
    const jobs = async (line: string) => (await command(server, line, env)).rows().map(([job]) => job)
    expect(await jobs("status")).toEqual(["JOB", "here/load-a", "there/load-a"])
    expect(await jobs("status -n there")).toEqual(["JOB", "load-a"])
    const other = { NAMESPACE: "here", JOB_NAMES: "load-a" }
    const { code, rows } = await command(server, "status -n there", other)
    expect([code, rows().map(([job]) => job)]).toEqual([0, ["JOB", "load-a"]])
  })

  test("a server that refuses or is away is a fault, exit code 1, said in one line", async () => {
    const server = await settled()
    server.fault({ verb: "list", resource: "jobs" }, { status: 403, message: "no" }, { times: 1 })
    expect(await command(server, "status")).toMatchObject({
      code: 1,
      out: "",
      err: expect.stringMatching(/^error: 403 Forbidden: no\n$/),
    })
    await server.stop()
    const { code, err } = await command(server, "status")
    expect([code, err.trimEnd().split("\n").length]).toEqual([1, 1])
  })

  test("a command that is interrupted ends with exit code 130, and tells of no error", async () => {
    const server = await settled()
    stand(server, "load-a")
    for (const resource of ["jobs", "pods"]) {
      server.fault({ verb: "list", resource }, { hang: true }, { times: 1 })
      const from = server.calls.length
      const { code, out, err } = await command(server, "status", {}, async (child) => {
        await until("listing", () => server.calls.slice(from).some((call) => call.resource === resource))
        child.kill("SIGINT")
      })
      expect([resource, code, out, err]).toEqual([resource, 130, "", expect.not.stringContaining("error")])
    }
  })

  test("a restart that is interrupted ends with exit code 130, and its intent stays", async () => {
    const server = await settled()
    const held = stand(server, "held", HELD)
    const { code, out } = await command(server, "restart held --yes", {}, async (child) => {
      await until("deleted", () => current(server, held)?.metadata.deletionTimestamp)
      for (; child.exitCode === null; await Bun.sleep(100)) child.kill("SIGINT")
    })
    expect([code, out, intents(server).length]).toEqual([
      130,
      expect.stringMatching(/held +interrupted +its intent/),
      1,
    ])
  })

  test("the operator's own account, which may list records but not read them, can use the commands too", async () => {
    const server = await serve()
    const life = live(server, EXIT_3)
    run(server, "alice", [exits(3, "x\n")])
    run(server, "bob", [exits(4, "never again\n")])
    await until("recorded", () => callsOf(server, "create", "configmaps").length >= 3)
    const [pod] = server.model.pods().filter(({ metadata }) => metadata.name.startsWith("alice"))
    const { namespace, name } = pod!.metadata
    server.model.request({ verb: "delete", resource: "pods", namespace, name, body: { gracePeriodSeconds: 0 } })
    life.stop()
    await life.done
    const env = { KUBECONFIG: server.writeKubeconfig(join(folder, "operator"), { user: "operator" }) }
    const status = await command(server, "status", env)
    expect([status.code, status.rows().map(([name, state]) => [name, state])]).toEqual([
      0,
      [
        ["JOB", "STATE"],
        ["alice", "waiting"],
        ["bob", "given_up"],
      ],
    ])
    expect((await command(server, "explain alice", env)).out).toMatch(/rules +oom.*\n +exit:3=2h matches/)
    expect(await command(server, "restart alice --yes", env)).toMatchObject({ code: 0 })
    expect(server.model.job("default", "alice")?.metadata.annotations).toMatchObject({
      [`${PREFIX}last-cause`]: "exit:3",
    })
  })

  test("an intent is no Job of its own to the commands", async () => {
    const server = await settled()
    stand(server, "x-restart-1", { metadata: { labels: { [INTENT]: "x" } } })
    expect((await command(server, "status")).rows().length).toBe(1)
  })
})
