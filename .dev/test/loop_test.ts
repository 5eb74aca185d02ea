// Chapter 12 of operator.ts: class Operator follows a namespace in the embedded API server over real HTTPS, in any
// weather, and leaves no trace but what it should. An id in a name is a report, listed in .github/docs/reports.md.
import { describe, expect, test } from "bun:test"
import {
  type Cluster,
  draftOf,
  intentFor,
  isIntent,
  labelValueFor,
  PREFIX,
  RECORD,
  RIGHTS,
  readSettings,
  SETTINGS_MAP,
} from "../../operator.ts"
import type { Policy } from "../apiserver/admission.ts"
import type { Action, Call, Match } from "../apiserver/http.ts"
import type { Obj } from "../apiserver/model.ts"
import { OLD_ROLE, OPERATOR_ROLE } from "../apiserver/roles.ts"
import {
  afterLaterEvent,
  afterLaterFailure,
  allBack,
  backOnce,
  bodyName,
  callsOf,
  creations,
  cronOwned,
  current,
  deletions,
  ended,
  exits,
  expectOnce,
  FAULTS,
  fail,
  failedAgo,
  HELD,
  type Hurried,
  intents,
  isBack,
  isDryRun,
  kubectlDelete,
  live,
  made,
  outcomesOf,
  person,
  proofs,
  release,
  removedByTtl,
  restartServer,
  run,
  type Server,
  scaleLimits,
  serve,
  stand,
  standIntent,
  standPod,
  terminating,
  tidyUp,
  timestamp,
  until,
  untilTooLate,
} from "./acting_kit.ts"

tidyUp()

type Event = { involvedObject: { name: string } }

const WATCHES = { verb: "watch", resource: "jobs" } as const
/** The calls by which an operator follows a namespace. */
const LOOP: Record<string, Match> = {
  "rules review": {
    resource: "selfsubjectrulesreviews",
    when: ({ body }) => JSON.stringify(body).includes('"rules-review"'),
  },
  "list jobs": { verb: "list", resource: "jobs", when: ({ query }) => !query.labelSelector },
  "watch jobs": { verb: "watch", resource: "jobs" },
  "list pods": {
    verb: "list",
    resource: "pods",
    when: ({ query }) => query.labelSelector === "batch.kubernetes.io/job-name",
  },
  "watch pods": { verb: "watch", resource: "pods" },
}
const HALVES: Record<string, Action> = {
  "a watch that ends at once": { cutAfter: 0 },
  "a watch cut after an event": { cutAfter: 1 },
  "a watch cut within a line": { breakLineAfter: 0 },
  "D01 an ERROR event 410 in a watch": { errorAfter: 0, code: 410, reason: "Expired" },
  "an ERROR event 410 after an event": { errorAfter: 1, code: 410, reason: "Expired" },
  "D12 an ERROR event 500": { errorAfter: 0, code: 500, reason: "InternalError" },
}
describe("Following a namespace", () => {
  test.each(Object.entries({ ...FAULTS, ...HALVES }))(
    "%s, twice, for any of its calls hides no failure",
    async (fault, action) => {
      if (action.hang) scaleLimits()
      const server = await serve()
      const follow = (call: string, match: Match) => {
        const namespace = call.replace(" ", "-")
        server.model.put({ kind: "Namespace", metadata: { name: namespace } })
        const jobs = [
          stand(server, "before", { namespace }),
          stand(server, "after", { namespace, status: {}, spec: { suspend: true } }),
        ]
        server.fault({ ...match, ...(match.verb && { namespace }) }, action, { times: fault === "401" ? 4 : 2 })
        return { jobs, namespace, life: live(server, { NAMESPACE: namespace, CHECK_INTERVAL: "10" }, { rate: 100 }) }
      }
      const all = Object.entries(LOOP).map(([call, match]) => follow(call, match))
      await until("the first", () => all.every(({ jobs }) => isBack(server, jobs[0]!)))
      for (const { namespace } of all) fail(server, "after", namespace)
      await allBack(
        server,
        all.flatMap(({ jobs }) => jobs),
      )
      for (const { jobs, life } of all) expectOnce(server, [life], jobs)
    },
  )

  test("D02 a list whose continue token has expired (410) begins anew with its first page", async () => {
    const server = await serve()
    for (let i = 0; i < 501; i++)
      stand(server, `done-${i}`, { status: { conditions: [{ type: "Complete", status: "True" }] } })
    const job = stand(server, "load-a")
    server.fault({ verb: "list", resource: "jobs", when: ({ query }) => query.continue !== undefined }, { status: 410 })
    await backOnce(server, [live(server)], [job])
    const pages = callsOf(server, "list", "jobs", ({ query }) => !query.labelSelector).map(({ query, status }) => [
      query.continue !== undefined,
      status,
    ])
    expect(pages).toEqual([
      [false, 200],
      [true, 410],
      [false, 200],
      [true, 200],
    ])
  })

  test("D04 J14 what an open but dead watch has missed is found after more than two bookmarks' silence", async () => {
    const server = await serve()
    const job = stand(server, "load-a", { status: {}, spec: { suspend: true } })
    scaleLimits(100)
    const life = live(server, { CHECK_INTERVAL: "10" })
    await until("watching", () => callsOf(server, "watch").length > 0)
    // biome-ignore lint/complexity/useLiteralKeys: the server's sockets are its own
    for (const socket of server["sockets"]) socket.write = () => true
    fail(server, "load-a")
    await backOnce(server, [life], [job])
    expect(Number(callsOf(server, "watch")[0]?.query.timeoutSeconds)).toBeWithin(120, 600)
  })

  test("D07 a watch that is answered with 429 is not tried again before Retry-After has passed", async () => {
    const server = await serve()
    server.fault(WATCHES, { status: 429, retryAfterSeconds: 5 }, { times: 5 })
    const life = live(server)
    const job = stand(server, "load-a", { status: {}, spec: { suspend: true } })
    await until("refused twice", () => callsOf(server, "watch").length === 2)
    fail(server, "load-a")
    await backOnce(server, [life], [job])
    await until("watching", () => callsOf(server, "watch").at(-1)?.status === 200)
    const at = callsOf(server, "watch").map((call) => life.clock.at(call.at))
    expect(at.length).toBe(6)
    for (const [i, end] of at.slice(1).entries()) expect(end - at[i]!).toBeGreaterThanOrEqual(5_000)
  })

  const REVIEWS = { verb: "create", resource: "selfsubjectrulesreviews" } as const
  const forever: [string, Match, Action, { refused?: Match; rate: number; forMs: number }][] = [
    ["D07 429 on every watch", WATCHES, { status: 429, retryAfterSeconds: 1 }, { rate: 1_000, forMs: 600_000 }],
    ["D12 an ERROR event on every watch", WATCHES, { errorAfter: 0, code: 500 }, { rate: 1_000, forMs: 600_000 }],
    ["E01 a 401 to everything", {}, { status: 401 }, { refused: REVIEWS, rate: 200, forMs: 300_000 }],
    // Whether it has ended at once is measured by this clock, which must not run too fast.
    ["a watch that always ends at once", WATCHES, { cutAfter: 0 }, { rate: 5, forMs: 15_000 }],
  ]
  test.each(forever)(
    "%s is tried ever more rarely, and reported once",
    async (_, match, action, { rate, forMs, ...more }) => {
      const server = await serve()
      server.fault(match, action, { times: 9_999 })
      const life = live(server, {}, { rate })
      const began = life.clock.now()
      await until("the time is over", () => life.clock.now() - began > forMs)
      const { verb, resource } = more.refused ?? WATCHES
      expect(callsOf(server, verb!, resource!).length).toBeWithin(4, 60)
      expect(life.factsOf("Retrying").filter(({ what }) => what === "Jobs in default cannot be watched").length).toBe(1)
    },
  )

  test("D05 an event of an unknown type does nothing", async () => {
    const server = await serve()
    server.fault(WATCHES, { firstEvent: { type: "SOMETHINGNEW", object: {} } })
    const life = live(server)
    await afterLaterFailure(server, life)
    expect(callsOf(server, "watch").length).toBe(1)
  })

  test("D05 the next watch goes on from the version of the last bookmark", async () => {
    let aheadMs = 0
    const server = await serve({ now: () => Date.now() + aheadMs })
    live(server, { CHECK_INTERVAL: "60" }, { rate: 1 })
    await until("watching", () => callsOf(server, "watch").length === 1)
    await until("settings written", () => callsOf(server, "create", "configmaps", (call) => call.status > 0).length > 0)
    for (const name of ["a", "b", "c"]) server.model.put({ kind: "ConfigMap", metadata: { name } })
    const version = server.model.rv
    aheadMs = 1_000 * Number(callsOf(server, "watch")[0]?.query.timeoutSeconds)
    await fetch(`${server.url}/version`, { headers: { authorization: "Bearer admin" }, tls: { ca: server.ca } })
    await until("watching again", () => callsOf(server, "watch").length === 2)
    expect(callsOf(server, "watch")[1]?.query.resourceVersion).toBe(String(version))
  })

  test("D11 a failure is seen after the API server was away and came back with older versions", async () => {
    const server = await serve()
    for (let i = 0; i < 30; i++) stand(server, `old-${i}`, { status: {}, spec: { suspend: true } })
    const life = live(server, {}, { rate: 200 })
    await until("watching", () => callsOf(server, "watch", "pods").length + callsOf(server, "watch").length === 2)
    const before = server.model.rv
    await restartServer(server, 450, true)
    server.fault({}, { status: 503 }, { times: 6 })
    const job = stand(server, "old-7")
    expect(Number(job.metadata.resourceVersion)).toBeLessThan(before)
    await until("back", () => isBack(server, job) && intents(server).length === 0)
    expect(life.about("old-7", /failed at/).length).toBe(1)
    await until("pods watched", () => callsOf(server, "watch", "pods").at(-1)?.status === 200)
    const tries = server.calls.filter(({ status }) => status === 503).length
    expect(tries).toBe(6)
  })

  test("under the old Role all failures are seen by polling", async () => {
    const server = await serve()
    const life = live(server, { CHECK_INTERVAL: "10" }, { user: "old" })
    const jobs = [stand(server, "load-a"), run(server, "load-b", [exits(3), {}])]
    await backOnce(server, [life], jobs)
    expect(server.calls.filter(({ verb, status }) => verb === "watch" || status === 403)).toEqual([])
  })

  test("under the old Role the log tells at start what more rights would give", async () => {
    const server = await serve()
    const life = live(server, {}, { user: "old" })
    await until("told", () => life.said.some(({ text }) => /lacks/.test(text)))
    const lines = life.said
      .filter(({ text }) => /lacks/.test(text))
      .flatMap((line) => line.lines)
      .join("\n")
    expect(lines).toMatch(/watch batch\/jobs: .*polling[\s\S]*watch pods/)
    expect(lines).not.toMatch(/create batch\/jobs|list pods/)
  })

  test("once the Role is mended, Events, records and settings are written", async () => {
    const server = await serve()
    const watch = ["batch/jobs", "/pods"].map((right) => right.split("/") as [string, string])
    const watches = watch.map(([group, resource]) => ({ apiGroups: [group], resources: [resource], verbs: ["watch"] }))
    server.addUser("late", [...OLD_ROLE, ...watches])
    const life = live(server, { RESTART_DELAY: "3600" }, { user: "late", rate: 1 })
    await until("watching", () => callsOf(server, "watch", "pods").length === 1)
    server.addUser("late", OPERATOR_ROLE)
    life.clock.jump(601_000)
    await restartServer(server, 10)
    await until("reviewed again", () => life.factsOf("PermissionsReviewed").length === 2, 5_000)
    stand(server, "load-a")
    const written = (name: string) => callsOf(server, "create", "configmaps", (call) => bodyName(call).startsWith(name))
    await until("an Event", () => callsOf(server, "create", "events").length > 0)
    await until("a record", () => written("load-a").length > 0)
    await until("settings", () => written(SETTINGS_MAP).length > 0, 5_000)
  })

  test("a server that refuses to list Jobs for a minute is watched again when it does not any more", async () => {
    const server = await serve()
    server.fault({ verb: "list", resource: "jobs" }, { status: 403 }, { times: 9 })
    live(server)
    await until("watched", () => callsOf(server, "watch", "jobs").length > 0)
    expect(callsOf(server, "list", "jobs", ({ status }) => status === 200)).toHaveLength(1)
  })

  test("where a review promised too much, it polls after seven 403 answers to each watch", async () => {
    const server = await serve()
    server.addUser("webhook", OLD_ROLE, { incomplete: true })
    const life = live(server, {}, { user: "webhook" })
    await until("refused", () => callsOf(server, "watch").length > 0)
    const jobs = [stand(server, "load-a"), stand(server, "load-b")]
    await backOnce(server, [life], jobs)
    await until("given up", () => callsOf(server, "watch").length >= 7)
    const later = stand(server, "load-c")
    await backOnce(server, [life], [later])
    expect(callsOf(server, "watch").length).toBeLessThanOrEqual(14)
  })

  test("where reviews are refused, it tries what the Role may allow, and restarts", async () => {
    const server = await serve()
    server.fault({ resource: "selfsubjectrulesreviews" }, { status: 403 }, { times: 999 })
    const job = stand(server, "load-a")
    await backOnce(server, [live(server)], [job])
  })

  test("reviews of many namespaces that are refused in passing, once each, are asked for again", async () => {
    const server = await serve()
    server.fault({ resource: "selfsubjectrulesreviews" }, { status: 403 }, { times: 9 })
    const NAMESPACE = ["default", ..."abcdefgh"].join()
    const life = live(server, { NAMESPACE, CHECK_INTERVAL: "10" }, { user: "old" })
    await until("reviewed", () => life.factsOf("PermissionsReviewed").length === 9)
    expect(life.factsOf("PermissionsReviewed").filter(({ missing }) => missing.length === 0)).toEqual([])
  })

  const complete = { conditions: [{ type: "Complete", status: "True" }] }
  const held = (): object => ({ finalizers: ["example.test/hold"], deletionTimestamp: timestamp(Date.now()) })
  const leftAlone: [string, (server: Server) => object, RegExp | undefined][] = [
    ["A14 owned by a CronJob", (server) => ({ metadata: cronOwned(server) }), /owned by CronJob cron/],
    ["A14 with a foreign manager", () => ({ spec: { managedBy: "example.test/other" } }), /managed by example.test/],
    ["that is running", () => ({ status: {} }), /running/],
    ["that has succeeded", () => ({ status: complete }), /succeeded/],
    ["that is suspended", () => ({ status: {}, spec: { suspend: true } }), /suspended/],
    ["that is being deleted", () => ({ metadata: held(), status: {} }), /being deleted/],
    ["that is not selected", () => ({ metadata: { labels: { app: "other" } } }), undefined],
  ]
  test.each(leftAlone)("a Job %s gets no call, and its reason is logged once", async (_, wanted, reason) => {
    const server = await serve()
    const job = stand(server, "load-a", wanted(server))
    const life = live(server, { JOB_SELECTOR: "app!=other" })
    await afterLaterFailure(server, life)
    life.clock.jump(3_600_000)
    await afterLaterFailure(server, life)
    const { name } = job.metadata
    const isAbout = (call: Call) =>
      call.name === name || bodyName(call) === name || call.query.labelSelector?.includes(name)
    expect(server.calls.filter(isAbout)).toEqual([])
    expect(life.about(name, reason ?? /./).length).toBe(reason ? 1 : 0)
  })

  test("G14 a Job of a queue is restarted with its label and suspension, and with a warning", async () => {
    const server = await serve()
    const metadata = { labels: { "kueue.x-k8s.io/queue-name": "q1", app: "queued" } }
    const job = stand(server, "queued", { metadata, spec: { suspend: true } })
    const life = live(server)
    await allBack(server, [job])
    expect(current(server, job)).toMatchObject({ metadata: { labels: metadata.labels }, spec: { suspend: true } })
    expect(life.about("queued", /queue q1/)[0]?.level).toBe("warning")
  })

  test("a Job that loses the selected label while it waits is not restarted", async () => {
    const server = await serve()
    stand(server, "load-a", { metadata: { labels: { app: "load" } } })
    const life = live(server, { JOB_SELECTOR: "app!=other", RESTART_DELAY: "3600" })
    await until("scheduled", () => life.scheduled().length === 1)
    person(server, "patch", "load-a", { metadata: { labels: { app: "other" } } })
    await until("unscheduled", () => life.scheduled().length === 0)
    life.clock.jump(7_200_000)
    await afterLaterFailure(server, life)
    expect([deletions(server, "load-a"), life.about("load-a", /not selected/).length]).toEqual([[], 1])
  })

  test.each<[string, number, (server: Server, name: string) => unknown]>([
    ["a person", 300, kubectlDelete],
    ["its TTL", 1, () => {}],
  ])(
    "no failure is told of a Job that has lost the selected label, when %s deletes it",
    async (_, ttlSecondsAfterFinished, remove) => {
      const server = await serve()
      const spec = { ttlSecondsAfterFinished }
      stand(server, "load-a", { metadata: { labels: { app: "load" } }, spec, status: {} })
      const life = live(server, { JOB_SELECTOR: "app!=other" })
      await until("known", () => life.operator.cache.jobs.size === 1)
      person(server, "patch", "load-a", { metadata: { labels: { app: "other" } } })
      fail(server, "load-a")
      await afterLaterEvent(server, life)
      remove(server, "load-a")
      await until("forgotten", () => !life.operator.cache.jobs.has("default/load-a"))
      const told = life.facts.flatMap((fact) => ("job" in fact && fact.job?.name === "load-a" ? fact.kind : []))
      expect(told.filter((kind) => kind !== "LeftAlone")).toEqual([])
    },
  )

  test("a restart that was paused is told again when it goes on", async () => {
    const server = await serve()
    stand(server, "load-a")
    const life = live(server, { RESTART_DELAY: "3600" }, { rate: 1 })
    const pause = (paused: string | null) =>
      person(server, "patch", "load-a", { metadata: { annotations: { [`${PREFIX}paused`]: paused } } })
    await until("scheduled", () => life.factsOf("RestartScheduled", "load-a").length === 1)
    pause("true")
    await until("paused", () => life.factsOf("LeftAlone", "load-a").length === 1)
    pause(null)
    await afterLaterEvent(server, life)
    expect(life.factsOf("RestartScheduled", "load-a")).toHaveLength(2)
  })

  const earlier: [string, object, boolean][] = [
    ["a Job that an earlier life has restarted just now holds up", { restartedFrom: "U0" }, true],
    ["a Job that someone else has created just now does not hold up", {}, false],
    [
      "a restart in the future, from before the clock was set back, does not hold up",
      { restartedFrom: "U0", inMs: 3_600_000 },
      false,
    ],
  ]
  test.each(earlier)(
    "RESTART_SPACING: %s the next restart",
    async (_, { restartedFrom, inMs = 0 }: { restartedFrom?: string; inMs?: number }, isHeldUp) => {
      const server = await serve()
      const annotations = restartedFrom === undefined ? {} : { [`${PREFIX}restarted-from`]: restartedFrom }
      const creationTimestamp = timestamp(Date.now() + inMs)
      stand(server, "earlier", { status: {}, spec: { suspend: true }, metadata: { annotations, creationTimestamp } })
      const job = stand(server, "load-a")
      const life = live(server, { RESTART_SPACING: "86400" }, { rate: 1 })
      await until("looked at", () => life.about("load-a", /failed at/).length > 0)
      await afterLaterFailure(server, life)
      if (isHeldUp) expect(deletions(server, "load-a")).toEqual([])
      life.clock.jump(isHeldUp ? 86_400_000 : 0)
      await until("back", () => isBack(server, job))
    },
  )

  test("RESTART_SPACING: a Job that the cluster rejects keeps no other of its group waiting", async () => {
    const server = await serve()
    stand(server, "load-a", { status: failedAgo(60_000) })
    const deny: Policy["deny"] = ({ object }) => (object.metadata.name === "load-a" ? "not load-a" : undefined)
    server.model.admission.policies.push({ name: "denies", deny })
    const job = stand(server, "load-b")
    const life = live(server, { RESTART_SPACING: "86400" }, { rate: 1 })
    await until("back", () => isBack(server, job))
    expect(life.factsOf("RestartRejected", "load-a")).toHaveLength(1)
  })

  test.each([
    ["is given the label that a policy wants", { labels: { ok: "" } }, "back"],
    ["a person asks for now", { annotations: { [`${PREFIX}restart-now`]: "1" } }, "rejected"],
  ])("a rejected Job that %s is tried again soon", async (_, metadata, result) => {
    const server = await serve()
    const job = stand(server, "load-a")
    const deny: Policy["deny"] = ({ object }) =>
      object.metadata.name === "load-a" && object.metadata.labels?.ok === undefined ? "it lacks a label" : undefined
    server.model.admission.policies.push({ name: "denies", deny })
    const life = live(server, {}, { rate: 5 })
    const rejections = () => life.factsOf("RestartRejected", "load-a")
    // From the fourth on, the next try is two minutes away at least.
    life.clock.go(500)
    await until("rejected four times", () => rejections().length === 4)
    life.clock.go(5)
    person(server, "patch", "load-a", { metadata })
    const since = life.clock.monotonic()
    await until("tried again", () => (result === "back" ? isBack(server, job) : rejections().length === 5))
    expect(life.clock.monotonic() - since).toBeLessThan(60_000)
  })

  test("RESTART_SPACING: holds for Jobs that their TTL has removed, the longest overdue first", async () => {
    const server = await serve()
    const names = ["load-a", "load-b", "load-c"]
    const jobs = names.map((name, i) =>
      stand(server, name, { spec: { ttlSecondsAfterFinished: 600 }, status: failedAgo(597_000 + i * 1_000) }),
    )
    const life = live(server, { RESTART_SPACING: "360", RESTART_DELAY: "1800" }, { rate: 1 })
    await until("their TTL has removed them", () => !jobs.some((job) => current(server, job)))
    const waiting = () => [...life.operator.workqueue.schedules.values()].filter(({ at }) => at > life.clock.now())
    await until("their restarts wait", () => waiting().length === 3)
    expect(intents(server)).toHaveLength(3)
    const back = () => jobs.filter((job) => isBack(server, job)).map(({ metadata }) => metadata.name)
    for (const [i, ms] of [1_300_000, 362_000, 362_000].entries()) {
      life.clock.jump(ms)
      await until(`${i + 1} are back`, () => back().length > i)
      await afterLaterFailure(server, life)
      expect(back()).toEqual(names.slice(-i - 1))
    }
  })

  test("RESTART_SPACING: Jobs that their TTL took are looked at once for each of their restarts", async () => {
    const server = await serve()
    const names = Array.from({ length: 20 }, (_, i) => `load-${i}`)
    for (const name of names) standIntent(server, stand(server, name), Date.now() - 1_000)
    for (const name of names) kubectlDelete(server, name)
    live(server, { RESTART_SPACING: "60" }, { rate: 500 })
    await until("all are back", () => names.every((name) => server.model.job("default", name)))
    expect(callsOf(server, "list", "pods").length).toBeLessThan(2 * names.length + 5)
  })

  test("RESTART_SPACING: what is left of a restart, and is cleaned up, holds no other up", async () => {
    const server = await serve()
    standIntent(server, stand(server, "load-a"))
    kubectlDelete(server, "load-a")
    stand(server, "load-a", { status: {} })
    const other = stand(server, "load-b", { status: failedAgo(0) })
    const life = live(server, { RESTART_SPACING: "86400", RESTART_DELAY: "60" })
    await until("cleaned up", () => intents(server).length === 0)
    await backOnce(server, [life], [other])
  })

  test("RESTART_SPACING: after a start of the operator the longest overdue goes first", async () => {
    const server = await serve()
    const jobs = ["load-a", "load-b"].map((name) => stand(server, name))
    for (const [i, live] of jobs.entries()) {
      standIntent(server, live, Date.now() - (i + 1) * 60_000)
      kubectlDelete(server, live.metadata.name)
    }
    const life = live(server, { RESTART_SPACING: "86400" }, { rate: 1 })
    await until("one is back", () => jobs.some((job) => isBack(server, job)))
    await afterLaterFailure(server, life)
    expect(jobs.map((job) => isBack(server, job))).toEqual([false, true])
  })

  test("RESTART_SPACING: a restart that a person asks for does not wait, nor after a start", async () => {
    const server = await serve()
    const annotations = { [`${PREFIX}restarted-from`]: "U0", [`${PREFIX}restart-now`]: "1" }
    const job = stand(server, "load-a", { metadata: { annotations } })
    await backOnce(server, [live(server, { RESTART_SPACING: "86400" }, { rate: 1 })], [job])
  })

  test("a Job that is edited while its restart is held up does not wait for the next CHECK_INTERVAL", async () => {
    const server = await serve()
    const job = stand(server, "load-a")
    let isHeld = true
    const when = (call: Call) => isHeld && isDryRun(call)
    server.fault({ verb: "create", resource: "jobs", when }, { status: 503 }, { times: 999 })
    const life = live(server, { CHECK_INTERVAL: "86400" })
    await until("held up", () => proofs(server, "load-a").length > 1)
    isHeld = false
    person(server, "patch", "load-a", { metadata: { labels: { app: "next" } } })
    await until("back", () => isBack(server, job))
    expect(outcomesOf(life, "load-a")[0]).toBe("changed")
  })

  test("what a person asks for while an intent is written is done at once", async () => {
    const server = await serve()
    const job = stand(server, "load-a", { spec: { ttlSecondsAfterFinished: 3_000 } })
    /** The answer comes after the watch has told of the intent, and of what the person asks for. */
    const slow = (cluster: Cluster): Cluster => {
      const createJob: Cluster["createJob"] = async (namespace, sent, options, signal) => {
        const made = await cluster.createJob(namespace, sent, options, signal)
        if (!isIntent(sent) || intents(server).length > 1) return made
        person(server, "patch", "load-a", { metadata: { annotations: { [`${PREFIX}restart-now`]: "1" } } })
        const version = current(server, job)?.metadata.resourceVersion
        const view = () => life.operator.cache.jobs.get("default/load-a")?.view
        await until("told", () => view()?.resourceVersion === version)
        await until("taken from the queue", () => !life.operator.workqueue.schedules.has("default/load-a"))
        return made
      }
      return Object.assign(Object.create(cluster), { createJob })
    }
    const life = live(server, { RESTART_DELAY: "10h" }, { rate: 1, wrap: slow })
    await until("back", () => isBack(server, job))
  })

  test("a clock that is set while an intent is written makes no restart early", async () => {
    const server = await serve()
    const job = stand(server, "load-a", { spec: { ttlSecondsAfterFinished: 3_000 } })
    const setMs = 72_000_000
    const sets = (call: Call) => {
      if (bodyName(call).includes("-restart-")) life.clock.set(setMs)
      return false
    }
    server.fault({ verb: "create", resource: "jobs", when: sets }, {})
    /** The skew of this clock, which the answer to the next call tells. */
    let skewMs = 0
    const skewed = (cluster: Cluster): Cluster => {
      const told = <T>(answer: Promise<T>) => {
        if (life.clock.now() - Date.now() > setMs / 2) skewMs = -setMs
        return answer
      }
      const version: Cluster["version"] = (...call) => told(cluster.version(...call))
      const getJob: Cluster["getJob"] = (...call) => told(cluster.getJob(...call))
      return Object.assign(Object.create(cluster), { version, getJob, skewMs: () => skewMs })
    }
    const life = live(server, { RESTART_DELAY: "10h" }, { rate: 1, wrap: skewed })
    await until("noticed", () => life.factsOf("ClockSet").length > 0)
    await afterLaterFailure(server, life)
    expect([current(server, job)?.metadata.uid, deletions(server, "load-a")]).toEqual([job.metadata.uid, []])
  })

  /** A Job whose TTL has taken it, and whose intent waits for 300 s. */
  async function takenByTtl(user: string, settings: Record<string, string> = {}) {
    const server = await serve()
    const job = stand(server, "load-a", { spec: { ttlSecondsAfterFinished: 300 }, status: failedAgo(295_000) })
    const life = live(server, { RESTART_DELAY: "600", CHECK_INTERVAL: "1", ...settings }, { user, rate: 10 })
    await until("an intent", () => intents(server).length === 1)
    removedByTtl(server, "load-a")
    await until("seen gone", () => life.operator.cache.jobs.get("default/load-a")?.goneAt !== undefined)
    return { server, job, life }
  }

  test.each(["operator", "old"])(
    "who deletes the intent of a Job that its TTL took cancels its restart (as %s)",
    async (user) => {
      const { server, life } = await takenByTtl(user)
      await until("waiting", () => life.operator.cache.jobs.get("default/load-a")?.waitAfterGone !== undefined)
      kubectlDelete(server, intents(server)[0]!.metadata.name)
      await until("told", () => outcomesOf(life, "load-a").length > 0)
      life.clock.jump(600_000)
      await afterLaterFailure(server, life)
      expect([outcomesOf(life, "load-a"), creations(server, "load-a"), intents(server)]).toEqual([
        ["cancelled"],
        [],
        [],
      ])
    },
  )

  test("who follows the advice of the log cancels the restart of a Job that waits", async () => {
    const server = await serve()
    stand(server, "load-a", { spec: { ttlSecondsAfterFinished: 300 }, status: failedAgo(0) })
    const life = live(server, { RESTART_DELAY: "600" }, { rate: 1 })
    await until("an intent", () => life.factsOf("IntentWritten", "load-a").length === 1)
    const [advice] = life.about("load-a", /to cancel it/)
    for (const name of /delete job (.*)$/.exec(advice?.text ?? "")?.[1]?.split(" ") ?? []) kubectlDelete(server, name)
    await afterLaterFailure(server, life)
    life.clock.jump(700_000)
    await afterLaterFailure(server, life)
    expect([creations(server, "load-a"), intents(server)]).toEqual([[], []])
  })

  test("Jobs that their TTL took cost no call at each poll while they wait", async () => {
    const { server } = await takenByTtl("old", { RESTART_DELAY: "10h" })
    const lists = () => callsOf(server, "list").filter(({ query }) => !query.labelSelector).length
    const before = lists()
    await until("polled twenty times", () => lists() > before + 20)
    expect(callsOf(server, "list", "pods").length).toBeLessThan(5)
  })

  test("intents that an earlier life has left cost no call at each poll while they wait", async () => {
    const server = await serve()
    for (const name of ["load-a", "load-b", "load-c"]) {
      standIntent(server, stand(server, name), Date.now() + 36_000_000)
      kubectlDelete(server, name)
    }
    live(server, { CHECK_INTERVAL: "1" }, { user: "old", rate: 20 })
    await until("polled twenty times", () => callsOf(server, "list").length > 20)
    expect(callsOf(server, "get")).toEqual([])
  })

  /** A Job with a TTL shorter than a look at its pods may take; its log, or something else, comes late. */
  async function expiring(
    settings: Record<string, string>,
    ttlSecondsAfterFinished: number,
    late: Match = { subresource: "log" },
    before: Record<string, string> = {},
  ) {
    const server = await serve()
    server.fault(late, { delayMs: 1_000 }, { times: 99 })
    const annotations = Object.fromEntries(Object.entries(before).map(([name, value]) => [PREFIX + name, value]))
    const owned = { metadata: { annotations }, spec: { ttlSecondsAfterFinished }, status: failedAgo(0) }
    const job = stand(server, "load-a", owned)
    standPod(server, job, "q1", { phase: "Failed", containerStatuses: [ended("main", 3)] })
    return { server, life: live(server, settings, { rate: 10 }) }
  }

  test.each([{ RESTART_RULES: "exit:3=never" }, { MAX_RESTARTS: "0" }])(
    "a Job is not restarted before its cause is known, which forbids it: %j",
    async (settings) => {
      const { server, life } = await expiring(settings, 19)
      await until("given up", () => life.factsOf("GaveUp", "load-a").length > 0)
      await until("no intent", () => intents(server).length === 0)
      expect(deletions(server, "load-a")).toEqual([])
    },
  )

  test("an intent protects a Job from its TTL before its cause is known, while its pods are looked at", async () => {
    const { server, life } = await expiring({ RESTART_DELAY: "600" }, 55, { verb: "list", resource: "pods" })
    await until("an intent", () => intents(server).length === 1)
    expect(life.factsOf("FailureSeen", "load-a")).toEqual([])
  })

  test("after a rejection an intent is not replaced before the next try, whatever is told of it", async () => {
    const { server, life } = await expiring({ RESTART_DELAY: "30" }, 19)
    await until("an intent that waits too long", () => intents(server).length === 1)
    const isIntent = (call: Call) => bodyName(call).includes("-restart-")
    server.fault({ verb: "create", resource: "jobs", when: isIntent }, { status: 403 }, { times: 999 })
    await until("rejected", () => life.factsOf("RestartRejected", "load-a").length === 1)
    life.clock.go(1)
    for (const label of ["1", "2", "3"]) {
      person(server, "patch", intents(server)[0]!.metadata.name, { metadata: { labels: { label } } })
      await afterLaterEvent(server, life)
    }
    expect(life.factsOf("RestartRejected", "load-a")).toHaveLength(1)
  })

  const earlierFailures = {
    "that forbids it": undefined,
    "that forbids it, though the cause of the first failure is still on it": { "last-cause": "exit:1", restarts: "1" },
  }
  test.each(Object.entries(earlierFailures))(
    "a Job that its TTL took before its cause was known does not come back if %s",
    async (_, before) => {
      const settings = { RESTART_RULES: "exit:3=never", RESTART_DELAY: "600" }
      const { server, life } = await expiring(settings, 3, { subresource: "log" }, before)
      await until("an intent", () => intents(server).length === 1)
      removedByTtl(server, "load-a")
      await until("its cause is known", () => life.factsOf("FailureSeen", "load-a").length > 0)
      await until("no intent", () => intents(server).length === 0)
      life.clock.jump(600_000)
      await afterLaterFailure(server, life)
      expect(creations(server, "load-a")).toEqual([])
    },
  )

  test("a Job that its TTL took before its cause was known waits as long as its cause deserves", async () => {
    const { server, life } = await expiring({ RESTART_RULES: "exit:3=6h" }, 3)
    await until("an intent", () => intents(server).length === 1)
    removedByTtl(server, "load-a")
    await until("its cause is known", () => life.factsOf("FailureSeen", "load-a").length > 0)
    life.clock.jump(3_600_000)
    await afterLaterFailure(server, life)
    expect(creations(server, "load-a")).toEqual([])
    life.clock.jump(18_000_000)
    await until("back", () => server.model.job("default", "load-a"))
  })

  test("the cause is kept of a Job that its TTL took before it was known, though it waits the longest", async () => {
    const { server, life } = await expiring({ RESTART_RULES: "exit:3=10m" }, 3)
    await until("an intent", () => intents(server).length === 1)
    await until("its cause is known", () => life.factsOf("FailureSeen", "load-a").length > 0)
    await afterLaterFailure(server, life)
    const { uid } = removedByTtl(server, "load-a").metadata
    life.clock.jump(700_000)
    await until("back", () => ![undefined, uid].includes(server.model.job("default", "load-a")?.metadata.uid))
    expect(server.model.job("default", "load-a")?.metadata.annotations?.[`${PREFIX}last-cause`]).toBe("exit:3")
  })

  test("what a person asks for while the Job goes is done by the restart under way, and not once more", async () => {
    const server = await serve()
    const job = stand(server, "held", HELD)
    const life = live(server)
    await terminating(server, job)
    person(server, "patch", "held", { metadata: { annotations: { [`${PREFIX}restart-now`]: "1" } } })
    await until("taken", () => life.factsOf("EditTaken", "held").length > 0)
    release(server, "held")
    await until("back", () => isBack(server, job))
    expect(current(server, job)?.metadata.annotations).toMatchObject({
      [`${PREFIX}restart-now`]: "1",
      [`${PREFIX}restart-now-done`]: "1",
    })
  })

  test("a restart under way that an edit's waiting intent stands beside is taken up at once", async () => {
    const server = await serve()
    const job = stand(server, "held", HELD)
    standIntent(server, job)
    removedByTtl(server, "held")
    const edited = person(server, "patch", "held", { metadata: { labels: { edit: "1" } } })
    standIntent(server, edited, Date.now() + 36_000_000)
    release(server, "held")
    expect(current(server, job)).toBeUndefined()
    const life = live(server)
    await afterLaterFailure(server, life)
    await until("back", () => isBack(server, job), 5_000)
    expect(current(server, job)?.metadata.labels?.edit).toBe("1")
  })

  test("a waiting intent that is taken away by an owner that it was given cancels nothing", async () => {
    const server = await serve()
    const job = stand(server, "load-a", { spec: { ttlSecondsAfterFinished: 300 }, status: failedAgo(295_000) })
    const life = live(server, { RESTART_DELAY: "600" }, { rate: 10 })
    await until("an intent", () => intents(server).length === 1)
    removedByTtl(server, "load-a")
    await until("waiting", () => life.operator.cache.jobs.get("default/load-a")?.waitAfterGone !== undefined)
    const { name } = intents(server)[0]!.metadata
    const ownerReferences = [{ apiVersion: "v1", kind: "ConfigMap", name: "gone", uid: "gone" }]
    person(server, "patch", name, { metadata: { ownerReferences } })
    if (server.model.job("default", name)) kubectlDelete(server, name)
    await afterLaterFailure(server, life)
    life.clock.jump(600_000)
    await until("back", () => isBack(server, job), 5_000)
  })

  test("the intent of a standing Job that is not selected costs no call at each poll while it waits", async () => {
    const server = await serve()
    for (const name of ["load-a", "load-b", "load-c"]) standIntent(server, stand(server, name), Date.now() + 36_000_000)
    live(server, { CHECK_INTERVAL: "1", JOB_SELECTOR: "app=none" }, { user: "old", rate: 20 })
    await until("polled twenty times", () => callsOf(server, "list").length > 20)
    expect(callsOf(server, "get").length).toBeLessThan(10)
  })

  test("a Job that its TTL takes while its restart is rejected is created at once when it is due", async () => {
    const server = await serve()
    const job = stand(server, "load-a", { spec: { ttlSecondsAfterFinished: 300 }, status: failedAgo(290_000) })
    let isTaken = false
    const when = (call: Call) => {
      if (isTaken || !isDryRun(call)) return false
      isTaken = true
      removedByTtl(server, "load-a")
      return true
    }
    server.fault({ verb: "create", resource: "jobs", when }, { delayMs: 500, status: 403, message: "closed" })
    const life = live(server, {}, { rate: 1 })
    await until("rejected", () => life.factsOf("RestartRejected", "load-a").length > 0)
    await until("back", () => isBack(server, job), 5_000)
  })

  test("an operator too late for the evidence leaves the intent of one that knows the cause", async () => {
    const server = await serve()
    const job = stand(server, "load-a", { spec: { ttlSecondsAfterFinished: 300 }, status: failedAgo(290_000) })
    standPod(server, job, "q1", { phase: "Failed", containerStatuses: [ended("main", 3)] })
    const settings = { RESTART_RULES: "exit:3=10m, unknown=never", RESTART_DELAY: "600" }
    const first = live(server, settings, { rate: 1 })
    await until("an intent", () => first.factsOf("IntentWritten", "load-a").length > 0)
    person(server, "delete", "q1", { gracePeriodSeconds: 0 }, "pods")
    const second = live(server, settings, { rate: 1 })
    await until("the second has looked", () => second.factsOf("FailureSeen", "load-a").length > 0)
    await afterLaterEvent(server, second)
    removedByTtl(server, "load-a")
    await until("seen gone", () => second.operator.cache.jobs.get("default/load-a")?.goneAt !== undefined)
    await afterLaterEvent(server, second)
    expect(callsOf(server, "delete", "jobs", ({ name }) => name?.includes("-restart-"))).toEqual([])
    for (const life of [first, second]) life.clock.jump(700_000)
    await until("back", () => isBack(server, job), 5_000)
  })

  test("an operator that gives a Job up does not take away the fresh intent of one that wants it back", async () => {
    const server = await serve()
    const [first, second] = [{ RESTART_DELAY: "600" }, { MAX_RESTARTS: "0" }].map((own) =>
      live(server, own, { rate: 1 }),
    )
    await until("watching", () => callsOf(server, "watch", "jobs").length === 2)
    const job = stand(server, "load-a", { spec: { ttlSecondsAfterFinished: 300 }, status: failedAgo(290_000) })
    await until("an intent", () => first!.factsOf("IntentWritten", "load-a").length > 0)
    await until("given up", () => second!.factsOf("GaveUp", "load-a").length > 0)
    await afterLaterFailure(server, first!)
    removedByTtl(server, "load-a")
    await until("seen gone", () => second!.operator.cache.jobs.get("default/load-a")?.goneAt !== undefined)
    await afterLaterFailure(server, first!)
    expect(callsOf(server, "delete", "jobs", ({ name }) => name?.startsWith("load-a-restart-"))).toEqual([])
    for (const life of [first!, second!]) life.clock.jump(700_000)
    await until("back", () => isBack(server, job), 5_000)
  })

  test("the log and the metrics tell at the start of a Job that is gone and waits by an intent", async () => {
    const server = await serve()
    standIntent(server, stand(server, "load-a"), Date.now() + 36_000_000)
    kubectlDelete(server, "load-a")
    const life = live(server)
    await afterLaterFailure(server, life)
    expect(life.factsOf("IntentAdopted", "load-a").length).toBe(1)
    expect(life.operator.states()).toContainEqual({
      key: "default/load-a",
      state: "waiting",
      dueAt: expect.any(Number),
    })
  })

  const NO_JOBS = [{ ownerReferences: 5 }, { finalizers: 5 }, { annotations: { [`${PREFIX}group`]: { toString: 1 } } }]
  test.each(NO_JOBS)("an intent whose replacement is no Job is told of, and stops no other: %j", async (forged) => {
    const server = await serve()
    const additions = { annotations: {}, memory: {} }
    const draft = draftOf({ live: stand(server, "load-a"), additions, dueAt: undefined })
    const metadata = { ...draft.replacement.metadata, ...forged } as never
    person(server, "create", "", intentFor({ ...draft, replacement: { ...draft.replacement, metadata } }))
    kubectlDelete(server, "load-a")
    const life = live(server)
    await afterLaterFailure(server, life)
    expect(life.factsOf("IntentUnreadable")).toHaveLength(1)
  })

  test.each([{}, { suspend: true }])("no Job that has not ended is deleted by a forged intent: %j", async (spec) => {
    const server = await serve()
    const job = stand(server, "load-a", { status: {}, spec })
    const life = live(server)
    await afterLaterFailure(server, life)
    standIntent(server, current(server, job)!)
    await until("no intent", () => intents(server).length === 0)
    expect([deletions(server, "load-a"), current(server, job)?.metadata.uid]).toEqual([[], job.metadata.uid])
  })

  test("a restart that is cancelled of a Job that is not selected ends in peace", async () => {
    const server = await serve()
    const life = live(server, { JOB_SELECTOR: "app=none" }, { rate: 1_000 })
    await until("watching", () => callsOf(server, "watch").length > 0)
    const job = stand(server, "held", HELD)
    standIntent(server, job)
    await terminating(server, job)
    await untilTooLate(life)
    for (const { metadata } of intents(server)) kubectlDelete(server, metadata.name)
    await until("cancelled", () => outcomesOf(life, "held").length > 0)
    life.stop()
    await life.done
    expect(outcomesOf(life, "held")).toEqual(["cancelled"])
  })

  test("a watch of pods that is refused for long is opened again after ten minutes", async () => {
    const server = await serve()
    const watches = () => callsOf(server, "watch", "pods")
    server.fault({ verb: "watch", resource: "pods" }, { status: 403 }, { times: 7 })
    const life = live(server)
    await until("refused seven times", () => watches().length === 7)
    life.clock.jump(600_000)
    await until("opened", () => watches().some(({ status }) => status === 200))
  })

  test("Events are written while the records of failures cannot be", async () => {
    const server = await serve()
    server.fault({ verb: "create", resource: "configmaps" }, { status: 500 }, { times: 9_999 })
    const jobs = Array.from({ length: 12 }, (_, i) => stand(server, `load-${i}`))
    const life = live(server)
    await allBack(server, jobs)
    await until(
      "Events of each",
      () =>
        new Set(callsOf(server, "create", "events").map(({ body }) => (body as Event).involvedObject.name)).size >= 12,
    )
    await until("told", () => life.factsOf("WriteFailed").some(({ what }) => what === "a failure is not recorded"))
  })

  test("J09 a failure that lies an hour ahead counts from the moment it is seen", async () => {
    const server = await serve()
    const job = stand(server, "load-a", { status: failedAgo(-3_600_000) })
    await backOnce(server, [live(server, { RESTART_DELAY: "5" })], [job])
  })

  test("J09 a failure that lies a day ahead counts from when it is seen, though the server is silent", async () => {
    const server = await serve()
    server.fault({ resource: "version" }, { drop: "before" }, { times: 4 })
    const job = stand(server, "load-a", { status: failedAgo(-86_400_000) })
    live(server, { RESTART_DELAY: "60" })
    await until("back", () => isBack(server, job), 10_000)
  })

  test("J09 a clock that is set back by an hour during the delay does not make the restart late", async () => {
    const server = await serve()
    // The server's clock is right: it goes on as the monotonic one does.
    const measured = (cluster: Cluster, clock: Hurried): Cluster => {
      let skewMs = 0
      const version = async (signal: AbortSignal) => {
        const text = await cluster.version(signal)
        skewMs = clock.monotonic() - clock.now()
        return text
      }
      return Object.assign(Object.create(cluster), { skewMs: () => skewMs, version })
    }
    const life = live(server, { RESTART_DELAY: "20" }, { wrap: measured })
    const job = stand(server, "load-a")
    await until("scheduled", () => life.scheduled().length === 1)
    life.clock.set(-3_600_000)
    await backOnce(server, [life], [job])
    expect(life.factsOf("ClockSet").length).toBe(1)
  })

  test("a dry run changes nothing, and says once what it would do", async () => {
    const server = await serve()
    const jobs = [
      stand(server, "load-a"),
      run(server, "load-b", [exits(3, "x\n")]),
      stand(server, "ttl", { spec: { ttlSecondsAfterFinished: 3_600 } }),
    ]
    const held = stand(server, "held", HELD)
    const earlier = live(server, { JOB_NAMES: "held" })
    await until("an intent", () => current(server, held)?.metadata.deletionTimestamp)
    earlier.kill()
    await earlier.done
    release(server, "held")
    const from = server.calls.length
    const life = live(server, { DRY_RUN: "true" })
    await until("said", () =>
      jobs.every(({ metadata }) => life.about(metadata.name, /would be restarted now/).length > 0),
    )
    life.clock.jump(7_200_000)
    kubectlDelete(server, "ttl")
    await afterLaterFailure(server, life)
    const kinds = new Set(
      server.calls
        .slice(from)
        .map(({ verb, resource, subresource }) => [verb, resource, subresource].filter(Boolean).join(" ")),
    )
    kinds.delete("get version") // for the clock, whenever it jumps
    expect([...kinds].sort()).toEqual([
      "create selfsubjectrulesreviews",
      "get pods log",
      "list jobs",
      "list pods",
      "watch jobs",
      "watch pods",
    ])
    for (const { metadata } of jobs) expect(life.about(metadata.name, /would be restarted now/).length).toBe(1)
  })

  /** A life that watches 20 quiet Jobs and has written what it writes at start. */
  async function watching(server: Server) {
    for (let i = 0; i < 20; i++) stand(server, `quiet-${i}`, { status: {}, spec: { suspend: true } })
    const life = live(server, { CHECK_INTERVAL: "60" })
    await until("watching", () => callsOf(server, "watch", "pods").length + callsOf(server, "watch").length === 2)
    const writesAtStart = () => server.calls.filter(({ resource, status }) => resource === "configmaps" && status > 0)
    await until("settings written, records pruned", () => writesAtStart().length === 3)
    return life
  }
  const besidesEvents = (calls: Call[]) => calls.filter(({ resource }) => resource !== "events")

  test("a restart records the failure, writes its intent, asks, deletes, creates, and removes the intent", async () => {
    const server = await serve()
    const life = await watching(server)
    const from = server.calls.length
    await backOnce(server, [life], [run(server, "load-a", [exits(3), {}])])
    const calls = besidesEvents(server.calls.slice(from))
    const writes = calls.filter(({ verb }) => verb === "create" || verb === "delete").map(({ resource }) => resource)
    expect(writes.toSorted()).toEqual(["configmaps", "jobs", "jobs", "jobs", "jobs", "jobs"])
  })

  test("while it watches, a quiet hour costs no more than a relist of Jobs and pods", async () => {
    const server = await serve()
    const life = await watching(server)
    const from = server.calls.length
    life.clock.jump(3_600_000)
    for (const _ of [1, 2]) await afterLaterEvent(server, life)
    expect(besidesEvents(server.calls.slice(from)).length).toBeLessThanOrEqual(2)
  })

  test("while it polls, a quiet hour costs one list a minute at most", async () => {
    const server = await serve()
    const life = live(server, { CHECK_INTERVAL: "60" }, { user: "old", rate: 3_600 })
    const began = life.clock.now()
    await until("an hour", () => life.clock.now() - began >= 3_600_000)
    // A busy machine polls less often, for this clock runs on meanwhile.
    expect(server.calls.length).toBeWithin(2, 69)
  })

  test.each([
    ["ahead", 3_600_000],
    ["behind", -3_600_000],
  ])("what is due follows the clock of a server that is an hour %s", async (_, dateOffsetMs) => {
    const server = await serve()
    server.fault({}, { dateOffsetMs }, { times: 9_999 })
    const job = stand(server, "load-a", { status: failedAgo(-dateOffsetMs) })
    const life = live(server, { RESTART_DELAY: "60" }, { rate: 10 })
    await until("scheduled", () => life.scheduled().length === 1)
    for (const _ of [1, 2]) await afterLaterEvent(server, life)
    expect(isBack(server, job)).toBe(false)
    life.clock.jump(59_000)
    await backOnce(server, [life], [job])
    expect(life.said.filter(({ text }) => /clock is -?(1h|59m)/.test(text)).length).toBe(1)
  })

  test("after 200 restarts the memory holds nothing of them", async () => {
    const server = await serve({ attemptsPer: "name" })
    const script = [...Array.from({ length: 10 }, () => exits(3)), {}]
    const life = live(server)
    const jobs = Array.from({ length: 20 }, (_, i) => run(server, `load-${i}`, script))
    const all = () => jobs.every(({ metadata }) => server.uids.get(`default/${metadata.name}`)?.length === 11)
    await until("ten restarts of each", () => all() && intents(server).length === 0, 50_000)
    await until(
      "all pods running",
      () => server.model.pods().length === 20 && server.model.pods().every(({ status }) => status.phase === "Running"),
    )
    life.clock.jump(120_000)
    const { operator } = life
    // biome-ignore-start lint/complexity/useLiteralKeys: these are private, and no other code needs them
    const sizes = () => ({
      scheduled: operator.workqueue.schedules.size,
      restarts: operator["restarts"].dueTimes().size,
      intents: operator.cache["intents"].size,
      pods: operator.cache["pods"].size,
      jobs: operator.cache.jobs.size,
    })
    // biome-ignore-end lint/complexity/useLiteralKeys: these are private, and no other code needs them
    const bounded = { scheduled: 0, restarts: 0, intents: 0, pods: 20, jobs: 20 }
    await until("forgotten", () => Bun.deepEquals(sizes(), bounded), 10_000).catch(() => {})
    expect(sizes()).toEqual(bounded)
  }, 90_000)

  test("G13 a new Job that gets no pod is reported once, and not restarted", async () => {
    const servers = await Promise.all(["operator", "old"].map(async (user) => ({ user, server: await serve() })))
    for (const { server, user } of servers) {
      const job = stand(server, "load-a")
      server.model.stall("default", "load-a")
      const life = live(server, {}, { user })
      await backOnce(server, [life], [job])
      await until("reported", () => life.factsOf("NoPod", "load-a").length > 0)
      life.clock.jump(3_600_000)
      await afterLaterEvent(server, life)
      expect([server.uids.get("default/load-a")?.length, life.factsOf("NoPod", "load-a").length]).toEqual([2, 1])
      expect(callsOf(server, "patch")).toEqual([])
    }
  })
})

test("a new Job without a pod is reported though the first look at it fails", async () => {
  const server = await serve()
  const job = stand(server, "load-a")
  server.model.stall("default", "load-a")
  const life = live(server)
  await backOnce(server, [life], [job])
  server.fault({ verb: "get", resource: "jobs", name: "load-a" }, { status: 500 })
  await until("reported", () => life.factsOf("NoPod", "load-a").length > 0)
  expect(callsOf(server, "get", "jobs", ({ name, status }) => name === "load-a" && status === 500).length).toBe(1)
})

test("a restart whose last answer was lost is reported once as done", async () => {
  const server = await serve()
  // Twice, for a call on a connection that was used before is sent again by Bun.
  server.fault({ verb: "delete", resource: "jobs", name: /^load-a-restart-/ }, { drop: "after" }, { times: 2 })
  const life = live(server)
  await backOnce(server, [life], [stand(server, "load-a")])
  const outcomes = () => life.factsOf("RestartFinished", "load-a").map(({ outcome }) => outcome.result)
  await until("reported", () => outcomes().length > 0)
  expect(outcomes()).toEqual(["restarted"])
})

test("a failure that the look for a missing pod reads is known before the next poll", async () => {
  const server = await serve()
  server.model.stall("default", "load-a")
  stand(server, "load-a", { status: {}, metadata: { annotations: { [`${PREFIX}restarted-from`]: "U0" } } })
  const life = live(server, { CHECK_INTERVAL: "36000" }, { user: "old" })
  await until("listed", () => life.about("load-a", /it is running/).length > 0)
  fail(server, "load-a")
  await until("seen", () => life.about("load-a", /failed at/).length > 0)
  expect(callsOf(server, "list", "jobs", ({ query }) => !query.labelSelector).length).toBe(1)
})

describe("The history", () => {
  const records = (server: Server, job = "load-a") =>
    [...server.model.objects.configmaps!.values()].filter(
      ({ metadata: { labels } }) => labels?.[RECORD] && labels[`${PREFIX}job`] === job,
    )
  const writes: Match = { verb: "create", resource: "configmaps", when: (call) => bodyName(call).includes("-failure-") }
  // No server says of what is not there that it exists.
  const HONEST = Object.entries(FAULTS).filter(([fault]) => !/AlreadyExists/.test(fault))
  const fact = (name: string) => (record: Obj) => record.metadata.annotations?.[PREFIX + name]

  const POLLS = [...OLD_ROLE, { verbs: ["create", "list", "delete"], apiGroups: [""], resources: ["configmaps"] }]

  test("two operators leave one record of each failure, with its log and what was decided", async () => {
    const server = await serve()
    const lives = [live(server), live(server)]
    run(server, "load-a", [exits(3, "x\n"), exits(4, "y\n"), {}])
    await until("two records, one Job", () => records(server).length === 2 && intents(server).length === 0)
    await until("it runs", () => server.model.pods().some(({ status }) => status.phase === "Running"))
    expect(records(server).map(fact("cause")).toSorted()).toEqual(["exit:3", "exit:4"])
    const [first] = records(server).filter((record) => fact("cause")(record) === "exit:3")
    expect(first).toMatchObject({
      immutable: true,
      metadata: { annotations: { [`${PREFIX}uid`]: server.uids.get("default/load-a")?.[0] } },
    })
    expect(fact("decided")(first!)).toMatch(/^to be restarted at .*Z: RESTART_DELAY 0s$/)
    const { pods, logs } = JSON.parse((first!.data as Record<string, string>)["failure.json"]!)
    expect(pods).toMatchObject([{ containers: [{ name: "main", exitCode: 3 }] }])
    expect(Object.values(logs)).toEqual([{ lines: ["x"] }])
    for (const life of lives) expect(life.factsOf("WriteFailed")).toEqual([])
  })

  test("the last HISTORY_LIMIT records are kept of each Job", async () => {
    const server = await serve()
    live(server, { HISTORY_LIMIT: "2" })
    run(server, "load-a", [exits(1), exits(2), exits(3), exits(4), {}])
    stand(server, "other")
    const isRestarted = () => server.uids.get("default/load-a")?.length === 5 && intents(server).length === 0
    await until("restarted four times", isRestarted)
    await until("two left", () => records(server).length === 2 && callsOf(server, "delete", "configmaps").length === 2)
    expect(records(server).map(fact("cause")).toSorted()).toEqual(["exit:3", "exit:4"])
    expect(records(server, "other").length).toBe(1)
  })

  test.each([
    ["may be removed", POLLS],
    ["may only be created", [...OLD_ROLE, { verbs: ["create"], apiGroups: [""], resources: ["configmaps"] }]],
  ])("what is known of records that %s is forgotten, once a day, of Jobs that are gone", async (_, role) => {
    const server = await serve()
    server.addUser("polls", role)
    const life = live(server, { RESTART_DELAY: "100h" }, { user: "polls" })
    for (const name of ["load-a", "load-b"]) stand(server, name)
    await until("recorded", () => life.operator.recorder.known.size === 2)
    kubectlDelete(server, "load-b")
    await until("gone", () => life.factsOf("DeletedByOthers", "load-b").length > 0)
    life.clock.jump(25 * 3_600_000)
    await until("forgotten", () => life.operator.recorder.known.size === 1)
    expect(life.operator.recorder.known.get("default/load-a")?.length).toBe(1)
    expect(records(server, "load-b").length).toBe(1)
  })

  test("HISTORY_LIMIT=0 writes no record and removes none", async () => {
    const server = await serve()
    const life = live(server)
    await backOnce(server, [life], [stand(server, "load-a")])
    await until("a record", () => records(server).length === 1)
    life.stop()
    await life.done
    const off = live(server, { HISTORY_LIMIT: "0" })
    await backOnce(server, [off], [stand(server, "load-b")])
    expect([records(server).length, records(server, "load-b").length]).toEqual([1, 0])
  })

  test("records beyond the limit, and of Jobs gone for a month, are removed at start and once a day", async () => {
    const long = "l".repeat(80)
    const prefixed = (facts: object) =>
      Object.fromEntries(Object.entries(facts).map(([key, fact]) => [PREFIX + key, fact]))
    const server = await serve()
    const put = (job: string, days: number, at = Date.now()) =>
      server.model.put({
        kind: "ConfigMap",
        metadata: {
          name: `${job}-${days}`,
          labels: { [RECORD]: "failure", [`${PREFIX}job`]: labelValueFor(job) },
          annotations: prefixed({ "failed-at": timestamp(at - days * 86_400_000), ...(job === long && { job }) }),
        },
      })
    server.addUser("polls", POLLS)
    stand(server, "there", { status: {}, spec: { suspend: true } })
    for (const days of [1, 2, 50]) put("there", days)
    stand(server, long, { status: {}, spec: { suspend: true } })
    put(long, 40)
    for (const [job, days] of [
      ["gone", 31],
      ["gone", 32],
      ["lately", 29],
    ] as const)
      put(job, days)
    const life = live(server, { HISTORY_LIMIT: "2" }, { user: "polls" })
    await until("pruned", () => callsOf(server, "delete", "configmaps").length === 3)
    const left = ["there", "gone", "lately", labelValueFor(long)].map((job) => records(server, job).length)
    expect(left).toEqual([2, 0, 1, 1])
    life.clock.jump(25 * 3_600_000)
    await until("pruned again", () => callsOf(server, "list", "configmaps").length === 2)
    life.clock.jump(2 * 3_600_000)
    for (const _ of [1, 2]) await afterLaterEvent(server, life)
    expect(callsOf(server, "list", "configmaps").length).toBe(2)
  })

  test.each(HONEST)(
    "%s, for each call about records: the restart does not wait, and the record is written in the end",
    async (_, action) => {
      if (action.hang) scaleLimits()
      const server = await serve()
      server.fault({ resource: "configmaps" }, action, { times: 3 })
      const life = live(server)
      const job = stand(server, "load-a")
      await backOnce(server, [life], [job])
      await until("a record", () => records(server).length === 1)
    },
  )

  test("while no record can be written, restarts go on, and a few writes at a time are under way", async () => {
    const server = await serve()
    server.fault(writes, { hang: true }, { times: 999 })
    const life = live(server)
    const jobs = Array.from({ length: 50 }, (_, i) => stand(server, `load-${100 + i}`))
    await backOnce(server, [life], jobs)
    expect(callsOf(server, "create", "configmaps", writes.when).length).toBeLessThanOrEqual(20)
    life.kill()
    await life.done
  })

  test.each([
    ["a quota", (name: string) => `configmaps "${name}" is forbidden: exceeded quota`, 7],
    ["a policy", () => "denied", 7],
  ])(
    "%s that rejects records is reported once for all failures, after half a minute of tries",
    async (_, message, tries) => {
      const server = await serve()
      for (const name of ["load-a", "load-b"]) {
        const when = (call: Call) => writes.when!(call) && bodyName(call).startsWith(name)
        server.fault({ ...writes, when }, { status: 403, message: message(name) }, { times: 999 })
      }
      const life = live(server, {}, { rate: 200 })
      const jobs = [stand(server, "load-a"), stand(server, "load-b")]
      await backOnce(server, [life], jobs)
      await until("said", () => life.said.some(({ text }) => /not recorded/.test(text)))
      await until("tried", () => callsOf(server, "create", "configmaps", writes.when).length === 2 * tries)
      await afterLaterEvent(server, life)
      const failed = life.factsOf("WriteFailed").filter(({ what }) => what === "a failure is not recorded")
      expect(failed.map(({ why }) => why)).toEqual([
        expect.stringMatching(/^403 Forbidden: (configmaps "load-|denied)/),
      ])
    },
  )

  test("under the old Role restarts go on without a history", async () => {
    const server = await serve()
    const life = live(server, {}, { user: "old" })
    await backOnce(server, [life], [stand(server, "load-a"), stand(server, "load-b")])
    expect(server.calls.filter(({ resource }) => resource === "configmaps")).toEqual([])
    expect(
      life.said
        .flatMap(({ lines }) => lines)
        .filter((line) => /create configmaps: failures are not recorded,/.test(line)).length,
    ).toBe(1)
  })

  test("a failure whose Job its TTL takes before it was looked at is recorded as far as it was seen", async () => {
    const server = await serve()
    const job = stand(server, "load-a", { status: {}, spec: { suspend: true, ttlSecondsAfterFinished: 0 } })
    live(server, { RESTART_DELAY: "3600" })
    await until("watching", () => callsOf(server, "watch").length > 0)
    server.model.setStatus("jobs", "default", "load-a", failedAgo(0))
    kubectlDelete(server, "load-a")
    await until("a record", () => records(server).length === 1)
    expect(fact("uid")(records(server)[0]!)).toBe(job.metadata.uid)
  })
})

describe("The settings for the commands", () => {
  const written = (server: Server) => server.model.objects.configmaps!.get(`default/${SETTINGS_MAP}`)

  const settings = {
    RESTART_RULES: "exit:3=6h\nlog:/a, b/i=never",
    NOTIFY_URL: "https://example.test/secret-topic",
    HISTORY_LIMIT: "0",
  }
  test("are written as the operator understood them, without secrets", async () => {
    const server = await serve()
    live(server, settings)
    await until("written", () => written(server))
    const { data, metadata } = written(server)!
    expect(JSON.stringify(data)).not.toContain("example.test")
    expect(data).toMatchObject({ RESTART_RULES: "exit:3=6h, log:/a, b/i=never", JOB_NAMES: "" })
    const { config } = readSettings(data as Record<string, string>)
    expect(config).toMatchObject({ restartDelayMs: 0, logLines: 20 })
    expect(metadata.annotations?.[`${PREFIX}written-at`]).toMatch(/^\d{4}-.*Z$/)
  })

  test("are not written again while they are the same, and patched when they differ", async () => {
    const server = await serve()
    const calls = () => callsOf(server, "get", "configmaps").concat(...writes())
    const writes = () => ["create", "patch"].map((verb) => callsOf(server, verb as "create", "configmaps"))
    const lives: [object, number][] = [
      [{}, 2],
      [{}, 3],
      [{ MAX_RESTARTS: "3" }, 5],
    ]
    for (const [more, most] of lives) {
      const life = live(server, { ...settings, ...more })
      await until("looked at, and written if new", () => calls().filter(({ status }) => status > 0).length >= most)
      life.stop()
      await life.done
    }
    const verbs = server.calls.filter(({ resource }) => resource === "configmaps").map(({ verb }) => verb)
    expect(verbs).toEqual(["get", "create", "get", "get", "patch"])
    expect(written(server)?.data).toMatchObject({ MAX_RESTARTS: "3" })
  })

  test("are written in the end, whatever befalls the calls", async () => {
    const server = await serve()
    for (const action of Object.values(FAULTS))
      if (!action.hang) server.fault({ resource: "configmaps", name: SETTINGS_MAP }, action)
    live(server)
    await until("written", () => written(server))
  })
})

describe("The Role", () => {
  const rightsOf = (calls: Call[]) => {
    const right = ({ verb, group = "", resource, subresource }: Call) =>
      `${verb} ${group}/${resource}${subresource ? `/${subresource}` : ""}`
    return new Set(calls.filter(({ user }) => user === "operator" || user === "old").map(right))
  }
  test("grants all calls of these tests, besides what every ServiceAccount may do", () => {
    const always = ["create authorization.k8s.io/selfsubjectrulesreviews", "get /version"]
    expect([...rightsOf(made)].filter((right) => !(right in RIGHTS) && !always.includes(right))).toEqual([])
  })

  test("grants nothing that the operator does not use", async () => {
    const server = await serve()
    const life = live(server, { HISTORY_LIMIT: "1" })
    await until("watching", () => callsOf(server, "watch", "pods").length + callsOf(server, "watch").length === 2)
    run(server, "load-a", [exits(3), exits(3), {}])
    await until("a record removed", () => callsOf(server, "delete", "configmaps").length > 0)
    life.stop()
    await life.done
    live(server, { MAX_RESTARTS: "3" })
    await until("settings changed", () => callsOf(server, "patch", "configmaps").length > 0)
    const used = rightsOf(server.calls)
    expect(Object.keys(RIGHTS).filter((right) => !used.has(right))).toEqual([])
  })
})
