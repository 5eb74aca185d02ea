// Chapter 7 of operator.ts: class Operator follows a namespace in the embedded API server over real HTTPS, in any weather, and leaves no
// trace but what it should. An id in a name is a report, listed in operator_test.ts.
import { describe, expect, test } from "bun:test"
import { PREFIX, RECORD, RIGHTS, readSettings, SETTINGS_MAP } from "../../operator.ts"
import type { Action, Match } from "../apiserver/http.ts"
import type { Job, Obj } from "../apiserver/model.ts"
import { OLD_ROLE } from "../apiserver/roles.ts"
import {
  afterLaterEvent,
  afterLaterFailure,
  allBack,
  attempt,
  backOnce,
  bodyName,
  callsOf,
  cronOwned,
  current,
  deletions,
  expectOnce,
  FAULTS,
  fail,
  failure,
  HELD,
  instant,
  intents,
  isBack,
  kubectlDelete,
  live,
  made,
  person,
  release,
  restart,
  run,
  type Server,
  scaleLimits,
  serve,
  stand,
  tidyUp,
  until,
} from "./acting_kit.ts"

tidyUp()

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
    "%s, twice, for any of its calls: failures are seen before and after",
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

  test("D04 a watch that is open but dead is given up after twice CHECK_INTERVAL; a list finds what was missed", async () => {
    const server = await serve()
    const job = stand(server, "load-a", { status: {}, spec: { suspend: true } })
    scaleLimits()
    const life = live(server, { CHECK_INTERVAL: "10" })
    await until("watching", () => callsOf(server, "watch").length > 0)
    // biome-ignore lint/complexity/useLiteralKeys: the server's sockets are its own
    for (const socket of server["sockets"]) socket.write = () => true
    fail(server, "load-a")
    await backOnce(server, [life], [job])
    expect(Number(callsOf(server, "watch")[0]?.query.timeoutSeconds)).toBeWithin(120, 600)
  })

  test("D07 429 on each watch: never again before Retry-After has passed; failures are found by the lists, and the watch comes back", async () => {
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
    ["a watch that always ends at once", WATCHES, { cutAfter: 0 }, { rate: 20, forMs: 30_000 }],
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
      expect(life.said.filter(({ text }) => /cannot be followed/.test(text)).length).toBe(1)
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
    for (const name of ["a", "b", "c"]) server.model.put({ kind: "ConfigMap", metadata: { name } })
    const version = server.model.rv
    aheadMs = 1_000 * Number(callsOf(server, "watch")[0]?.query.timeoutSeconds)
    await fetch(`${server.url}/version`, { headers: { authorization: "Bearer admin" }, tls: { ca: server.ca } })
    await until("watching again", () => callsOf(server, "watch").length === 2)
    expect(callsOf(server, "watch")[1]?.query.resourceVersion).toBe(String(version))
  })

  test("D11 the API server is away for 90 s and comes back with older versions: all loops recover, a failure there is seen", async () => {
    const server = await serve()
    for (let i = 0; i < 30; i++) stand(server, `old-${i}`, { status: {}, spec: { suspend: true } })
    const life = live(server, {}, { rate: 200 })
    await until("watching", () => callsOf(server, "watch", "pods").length + callsOf(server, "watch").length === 2)
    const before = server.model.rv
    await restart(server, 450, true)
    server.fault({}, { status: 503 }, { times: 6 })
    const job = stand(server, "old-7")
    expect(Number(job.metadata.resourceVersion)).toBeLessThan(before)
    await until("back", () => isBack(server, job) && intents(server).length === 0)
    expect(life.about("old-7", /failed at/).length).toBe(1)
    await until("pods watched", () => callsOf(server, "watch", "pods").at(-1)?.status === 200)
    const tries = server.calls.filter(({ status }) => status === 503).length
    expect(tries).toBe(6)
  })

  test("the old Role: all failures are seen by polling, nothing is lost, and it is said once what more rights would give", async () => {
    const server = await serve()
    const life = live(server, { CHECK_INTERVAL: "10" }, { user: "old" })
    const jobs = [stand(server, "load-a"), run(server, "load-b", [attempt(3), {}])]
    await backOnce(server, [life], jobs)
    expect(server.calls.filter(({ verb, status }) => verb === "watch" || status === 403)).toEqual([])
    const lines = life.said
      .filter(({ text }) => /lacks/.test(text))
      .flatMap((line) => line.lines)
      .join("\n")
    expect(lines).toMatch(/watch batch\/jobs: .*polling[\s\S]*watch pods/)
    expect(lines).not.toMatch(/create batch\/jobs|list pods/)
  })

  test("a review that promises too much: after seven times 403 for each watch it polls", async () => {
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

  test("A14 G14 what is not ours or not failed gets no call and no change; each reason is said once, queues and suspension stay", async () => {
    const server = await serve()
    const queue = { labels: { "kueue.x-k8s.io/queue-name": "q1", app: "queued" } }
    const complete = { conditions: [{ type: "Complete", status: "True" }] }
    const jobs: [Job, RegExp][] = [
      [stand(server, "cron-owned", { metadata: cronOwned(server) }), /owned by CronJob cron/],
      [stand(server, "foreign", { spec: { managedBy: "example.test/other" } }), /managed by example.test\/other/],
      [stand(server, "runs", { status: {} }), /running/],
      [stand(server, "succeeded", { status: complete }), /succeeded/],
      [stand(server, "suspended", { status: {}, spec: { suspend: true } }), /suspended/],
      [
        stand(server, "dying", {
          metadata: { finalizers: ["example.test/hold"], deletionTimestamp: instant(Date.now()) },
        }),
        /being deleted/,
      ],
      [stand(server, "not-selected", { metadata: { labels: { app: "other" } } }), /./],
    ]
    const queued = stand(server, "queued", { metadata: queue, spec: { suspend: true } })
    const life = live(server, { JOB_SELECTOR: "app!=other" })
    await until("the queued one back", () => isBack(server, queued) && intents(server).length === 0)
    life.clock.jump(3_600_000)
    await afterLaterFailure(server, life)
    await until("no intent", () => intents(server).length === 0)
    const names = jobs.map(([{ metadata }]) => metadata.name)
    expect(
      server.calls.filter(({ name = "", query, ...call }) =>
        names.some((n) => [name, bodyName({ ...call, query })].includes(n) || query.labelSelector?.includes(n)),
      ),
    ).toEqual([])
    for (const [job, reason] of jobs)
      expect([job.metadata.name, life.about(job.metadata.name, reason).length]).toEqual([
        job.metadata.name,
        job.metadata.name === "not-selected" ? 0 : 1,
      ])
    expect(current(server, queued)).toMatchObject({ metadata: { labels: queue.labels }, spec: { suspend: true } })
    expect([life.about("queued", /queue q1/)[0]?.level, intents(server)]).toEqual(["warning", []])
  })

  test("a Job that loses the selected label while it waits is not restarted", async () => {
    const server = await serve()
    stand(server, "load-a", { metadata: { labels: { app: "load" } } })
    const life = live(server, { JOB_SELECTOR: "app!=other", RESTART_DELAY: "3600" })
    await until("scheduled", () => life.operator.schedules.size === 1)
    person(server, "patch", "load-a", { metadata: { labels: { app: "other" } } })
    await until("unscheduled", () => life.operator.schedules.size === 0)
    life.clock.jump(7_200_000)
    await afterLaterFailure(server, life)
    expect([deletions(server, "load-a"), life.about("load-a", /not selected/).length]).toEqual([[], 1])
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
      const creationTimestamp = instant(Date.now() + inMs)
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

  test("a dry run changes nothing: it lists, watches, reads logs, asks for its rights; and says what it would do, once", async () => {
    const server = await serve()
    const jobs = [
      stand(server, "load-a"),
      run(server, "load-b", [attempt(3, "x\n")]),
      stand(server, "ttl", { spec: { ttlSecondsAfterFinished: 1 } }),
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
    kubectlDelete(server, "ttl")
    life.clock.jump(7_200_000)
    await afterLaterFailure(server, life)
    const kinds = new Set(
      server.calls
        .slice(from)
        .map(({ verb, resource, subresource }) => [verb, resource, subresource].filter(Boolean).join(" ")),
    )
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

  test("a restart is a dozen calls besides its Events; a quiet hour of polling is one list a minute; watching, it is none", async () => {
    const server = await serve()
    for (let i = 0; i < 20; i++) stand(server, `quiet-${i}`, { status: {}, spec: { suspend: true } })
    const life = live(server, { CHECK_INTERVAL: "60" })
    await until("watching", () => callsOf(server, "watch", "pods").length + callsOf(server, "watch").length === 2)
    await until(
      "settings written, records pruned",
      () => server.calls.filter((c) => c.resource === "configmaps" && c.status > 0).length === 3,
    )
    const from = server.calls.length
    await backOnce(server, [life], [run(server, "load-a", [attempt(3), {}])])
    const calls = server.calls.slice(from).filter(({ resource }) => resource !== "events")
    expect(calls.length).toBeLessThanOrEqual(16)
    const writes = calls.filter(({ verb }) => verb === "create" || verb === "delete").map(({ resource }) => resource)
    expect(writes.toSorted()).toEqual(["configmaps", "jobs", "jobs", "jobs", "jobs"])
    const quiet = server.calls.length
    life.clock.jump(3_600_000)
    for (const _ of [1, 2]) await afterLaterEvent(server, life)
    expect(server.calls.slice(quiet).filter(({ resource }) => resource !== "events").length).toBeLessThanOrEqual(2)
    const old = await serve()
    const polls = live(old, { CHECK_INTERVAL: "60" }, { user: "old", rate: 3_600 })
    const began = polls.clock.now()
    await until("an hour", () => polls.clock.now() - began >= 3_600_000)
    expect(old.calls.length).toBeWithin(30, 69)
  })

  test.each([
    ["ahead", 3_600_000],
    ["behind", -3_600_000],
  ])("a server whose clock is an hour %s: said once, and what is due follows the server's", async (_, dateOffsetMs) => {
    const server = await serve()
    server.fault({}, { dateOffsetMs }, { times: 9_999 })
    const job = stand(server, "load-a", { status: failure(-dateOffsetMs) })
    const life = live(server, { RESTART_DELAY: "60" }, { rate: 10 })
    await until("scheduled", () => life.operator.schedules.size === 1)
    for (const _ of [1, 2]) await afterLaterEvent(server, life)
    expect(isBack(server, job)).toBe(false)
    life.clock.jump(59_000)
    await backOnce(server, [life], [job])
    expect(life.said.filter(({ text }) => /clock is -?(1h|59m)/.test(text)).length).toBe(1)
  })

  test("after 200 restarts the memory holds nothing of them", async () => {
    const server = await serve({ attemptsPer: "name" })
    const script = [...Array.from({ length: 10 }, () => attempt(3)), {}]
    const life = live(server)
    const jobs = Array.from({ length: 20 }, (_, i) => run(server, `load-${i}`, script))
    const all = () => jobs.every(({ metadata }) => server.uids.get(`default/${metadata.name}`)?.length === 11)
    await until("ten restarts of each", () => all() && intents(server).length === 0, 15_000)
    await until(
      "all pods running",
      () => server.model.pods().length === 20 && server.model.pods().every(({ status }) => status.phase === "Running"),
    )
    life.clock.jump(120_000)
    const maps = life.operator as unknown as Record<string, Map<string, unknown>>
    const sizes = () => ["schedules", "intents", "restarting", "pods", "jobs"].map((map) => maps[map]?.size)
    await until("forgotten", () => Bun.deepEquals(sizes(), [0, 0, 0, 20, 20]), 2_000).catch(() => {})
    expect(sizes()).toEqual([0, 0, 0, 20, 20])
  }, 20_000)

  test("G13 a new Job that gets no pod is no failure: said once, touched once if that is allowed, and not restarted", async () => {
    const servers = await Promise.all(["operator", "old"].map(async (user) => ({ user, server: await serve() })))
    for (const { server, user } of servers) {
      const job = stand(server, "load-a")
      server.model.stall("default", "load-a")
      const life = live(server, {}, { user })
      await backOnce(server, [life], [job])
      await until("said", () => life.about("load-a", /no pod/).length > 0)
      if (user !== "old") await until("touched", () => server.model.pods().length === 1)
      life.clock.jump(3_600_000)
      await afterLaterEvent(server, life)
      expect([server.uids.get("default/load-a")?.length, life.about("load-a", /no pod/).length]).toEqual([2, 1])
      expect([callsOf(server, "patch").length, server.model.pods().length]).toEqual(user === "old" ? [0, 0] : [1, 1])
    }
  })
})

test("a restart whose last answer was lost has ended all the same, and is said once", async () => {
  const server = await serve()
  // Twice, for a call on a connection that was used before is sent again by Bun.
  server.fault({ verb: "delete", resource: "jobs", name: /^load-a-restart-/ }, { drop: "after" }, { times: 2 })
  const life = live(server)
  await backOnce(server, [life], [stand(server, "load-a")])
  await until("said", () => life.about("load-a", /restarted in|has changed|removed the intent/).length > 0)
  expect(life.about("load-a", /restarted in/).length).toBe(1)
})

test("what the look for a missing pod reads is news: a failure is known before the next poll", async () => {
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

  test("of each failure one record is left, with its log and what was decided, by two operators too", async () => {
    const server = await serve()
    const lives = [live(server), live(server)]
    run(server, "load-a", [attempt(3, "x\n"), attempt(4, "y\n"), {}])
    await until("two records, one Job", () => records(server).length === 2 && intents(server).length === 0)
    await until("it runs", () => server.model.pods().some(({ status }) => status.phase === "Running"))
    expect(records(server).map(fact("cause")).toSorted()).toEqual(["exit:3", "exit:4"])
    const [first] = records(server).filter((record) => fact("cause")(record) === "exit:3")
    expect(first).toMatchObject({
      immutable: true,
      metadata: { annotations: { [`${PREFIX}uid`]: server.uids.get("default/load-a")?.[0] } },
    })
    expect(fact("decided")(first!)).toMatch(/^to be restarted at .*Z: RESTART_DELAY 0s$/)
    expect(Object.values(first!.data as object).join()).toMatch(/container main \(exit code 3[\s\S]*\nx\n/)
    for (const life of lives) expect(life.said.filter(({ text }) => /recorded/.test(text))).toEqual([])
  })

  test("the last HISTORY_LIMIT are kept of each Job; 0 writes none and removes none", async () => {
    const server = await serve()
    const life = live(server, { HISTORY_LIMIT: "2" })
    run(server, "load-a", [attempt(1), attempt(2), attempt(3), attempt(4), {}])
    stand(server, "other")
    await until(
      "restarted four times",
      () => server.uids.get("default/load-a")?.length === 5 && intents(server).length === 0,
    )
    await until("two left", () => records(server).length === 2 && callsOf(server, "delete", "configmaps").length === 2)
    expect([records(server).map(fact("cause")).toSorted(), records(server, "other").length]).toEqual([
      ["exit:3", "exit:4"],
      1,
    ])
    life.stop()
    await life.done
    const off = live(server, { HISTORY_LIMIT: "0" })
    await backOnce(server, [off], [stand(server, "load-b")])
    expect([records(server).length, records(server, "load-b").length]).toEqual([2, 0])
  })

  test("at start, and once a day: what is too much goes, and all of Jobs that are gone for a month", async () => {
    const server = await serve()
    const put = (job: string, days: number, at = Date.now()) =>
      server.model.put({
        kind: "ConfigMap",
        metadata: {
          name: `${job}-${days}`,
          labels: { [RECORD]: "failure", [`${PREFIX}job`]: job },
          annotations: { [`${PREFIX}failed-at`]: instant(at - days * 86_400_000) },
        },
      })
    server.addUser("polls", [
      ...OLD_ROLE,
      { verbs: ["create", "list", "delete"], apiGroups: [""], resources: ["configmaps"] },
    ])
    stand(server, "there", { status: {}, spec: { suspend: true } })
    for (const days of [1, 2, 50]) put("there", days)
    for (const [job, days] of [
      ["gone", 31],
      ["gone", 32],
      ["lately", 29],
    ] as const)
      put(job, days)
    const life = live(server, { HISTORY_LIMIT: "2" }, { user: "polls" })
    await until("pruned", () => callsOf(server, "delete", "configmaps").length === 3)
    expect(["there", "gone", "lately"].map((job) => records(server, job).length)).toEqual([2, 0, 1])
    life.clock.jump(25 * 3_600_000)
    await until("pruned again", () => callsOf(server, "list", "configmaps").length === 2)
    life.clock.jump(2 * 3_600_000)
    for (const _ of [1, 2]) await afterLaterEvent(server, life)
    expect(callsOf(server, "list", "configmaps").length).toBe(2)
  })

  test.each(HONEST)(
    "%s, for each write and each look: the restart does not wait, and the record is there in the end",
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

  test("while no record can be written, memory is bounded: what is above is said once, and restarts go on", async () => {
    const server = await serve()
    server.fault(writes, { hang: true }, { times: 999 })
    const life = live(server)
    const jobs = Array.from({ length: 50 }, (_, i) => stand(server, `load-${100 + i}`))
    await backOnce(server, [life], jobs)
    expect(callsOf(server, "create", "configmaps", writes.when).length).toBeLessThanOrEqual(40)
    expect(life.said.filter(({ text }) => /not recorded: 40 others wait/.test(text)).length).toBe(1)
    life.kill()
    await life.done
  })

  test.each([
    ["a quota", "configmaps is forbidden: exceeded quota", 7],
    ["a policy", "denied", 7],
  ])("%s that refuses: tried for half a minute, then said once for all failures", async (_, message, tries) => {
    const server = await serve()
    server.fault(writes, { status: 403, message }, { times: 999 })
    const life = live(server, {}, { rate: 200 })
    const jobs = [stand(server, "load-a"), stand(server, "load-b")]
    await backOnce(server, [life], jobs)
    await until("said", () => life.said.some(({ text }) => /not recorded/.test(text)))
    await until("tried", () => callsOf(server, "create", "configmaps", writes.when).length === 2 * tries)
    await afterLaterEvent(server, life)
    expect(
      life.said.filter(({ text }) => text.includes("not recorded")).map(({ level, text }) => [level, text]),
    ).toEqual([["warning", `default: a failure is not recorded: 403 Forbidden: ${message}`]])
  })

  test("the old Role: all goes on without a history, which is said once among what the Role lacks", async () => {
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

  test("a failure whose Job the TTL takes before it was looked at is recorded as far as it was seen", async () => {
    const server = await serve()
    const job = stand(server, "load-a", { status: {}, spec: { suspend: true, ttlSecondsAfterFinished: 0 } })
    live(server, { RESTART_DELAY: "3600" })
    await until("watching", () => callsOf(server, "watch").length > 0)
    server.model.setStatus("jobs", "default", "load-a", failure(0))
    kubectlDelete(server, "load-a")
    await until("a record", () => records(server).length === 1)
    expect(fact("uid")(records(server)[0]!)).toBe(job.metadata.uid)
  })
})

describe("The settings for the commands", () => {
  const written = (server: Server) => server.model.objects.configmaps!.get(`default/${SETTINGS_MAP}`)

  test("stand there as the operator understood them, without secrets; the same are not written again, others are", async () => {
    const server = await serve()
    const settings = {
      RESTART_RULES: "exit:3=6h\nlog:/a, b/i=never",
      NOTIFY_URL: "https://example.test/secret-topic",
      HISTORY_LIMIT: "0",
    }
    const answered = () => server.calls.filter(({ resource, status }) => resource === "configmaps" && status > 0).length
    for (const [more, most] of [
      [{}, 2],
      [{}, 3],
      [{ MAX_RESTARTS: "3" }, 5],
    ] as const) {
      const life = live(server, { ...settings, ...more })
      await until("looked, and written where it is new", () => answered() >= most)
      life.stop()
      await life.done
    }
    expect(server.calls.filter(({ resource }) => resource === "configmaps").map(({ verb }) => verb)).toEqual([
      "get",
      "create",
      "get",
      "get",
      "patch",
    ])
    const { data, metadata } = written(server)!
    expect(JSON.stringify(data)).not.toContain("example.test")
    expect(data).toMatchObject({ MAX_RESTARTS: "3", RESTART_RULES: "exit:3=6h, log:/a, b/i=never", JOB_NAMES: "" })
    expect(readSettings(data as Record<string, string>).config).toMatchObject({
      maxRestarts: 3,
      restartDelayMs: 0,
      logLines: 20,
    })
    expect(metadata.annotations?.[`${PREFIX}written-at`]).toMatch(/^\d{4}-.*Z$/)
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
  test("all calls of these tests are within RIGHTS, rules reviews, the version and namespaces; each right is used", () => {
    const used = new Set(
      made
        .filter(({ user }) => user !== "")
        .map(
          ({ verb, group = "", resource, subresource }) =>
            `${verb} ${group}/${resource}${subresource ? `/${subresource}` : ""}`,
        ),
    )
    const always = ["create authorization.k8s.io/selfsubjectrulesreviews", "get /version", "get /namespaces"]
    expect([...used].filter((right) => !(right in RIGHTS) && !always.includes(right))).toEqual([])
    expect(Object.keys(RIGHTS).filter((right) => !used.has(right))).toEqual([])
  })
})
