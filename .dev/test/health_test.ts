// Chapter 13 of operator.ts: what probes and Prometheus are told, over real HTTP, beside an Operator at work on the
// embedded API server.

import { heapStats } from "bun:jsc"
import { describe, expect, test } from "bun:test"
import { readFileSync } from "node:fs"
import { join } from "node:path"
import {
  answerHealth,
  type Cause,
  type Clock,
  type Fact,
  type Log,
  Metrics,
  type Monotonic,
  notifier,
  type Operator,
  PREFIX,
  RESULTS,
  type ShownState,
  serveHealth,
} from "../../operator.ts"
import project from "../../package.json" with { type: "json" }
import type { Call } from "../apiserver/http.ts"
import {
  allBack,
  bodyName,
  callsOf,
  endings,
  exits,
  isBack,
  isDryRun,
  kubectlDelete,
  type Life,
  live,
  person,
  run,
  type Server,
  serve,
  stand,
  tidyUp,
  until,
} from "./acting_kit.ts"
import { foreign, identityOf, serve as serveHttps } from "./https_server.ts"
import { lint, parse } from "./metrics_kit.ts"

tidyUp()

/** An operator with its metrics, and what its port answers. */
function observed(server: Server, settings: Record<string, string> = {}) {
  const metrics = new Metrics()
  const life = live(server, settings, { metrics })
  const port = Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    fetch: (request) => answerHealth(request, life.operator, metrics, life.config),
  })
  endings.push(() => port.stop(true))
  const get = async (path: string, method = "GET") => {
    const response = await fetch(new URL(path, port.url), { method })
    return { status: response.status, text: await response.text(), type: response.headers.get("content-type") }
  }
  const samples = async () => parse((await get("/metrics")).text)
  return { life, metrics, get, samples }
}
const seen = (life: Life, name: string, words: RegExp) =>
  until(`${name} ${words}`, () => life.about(name, words).length > 0)

describe("/metrics", () => {
  test("counts are what happened: failures, restarts, calls, watches; and so are states and due times", async () => {
    const server = await serve()
    const { life, samples, get } = observed(server, { RESTART_RULES: "exit:4=never, exit:5=1h", CHECK_INTERVAL: "60" })
    const twice = run(server, "twice", [exits(3), exits(3), {}])
    run(server, "never", [exits(4)])
    run(server, "later", [exits(5)])
    await until("all three", () => server.uids.get("default/twice")?.length === 3)
    await seen(life, "never", /given up/)
    await until("later scheduled", () => life.factsOf("RestartScheduled", "later").length > 0)
    await until("twice runs", () => life.factsOf("LeftAlone", "twice").length > 0)
    await until("both restarts said", () => life.about("twice", /restarted in/).length === 2)
    const found = await samples()
    const of = (name: string) =>
      Object.fromEntries(
        found.filter((s) => s.name === `flickr_operator_${name}`).map(({ labels, value }) => [labels, value]),
      )
    const job = (name: string, label: string) => `namespace="default",job_name="${name}",${label}`
    const above0 = (name: string) => Object.fromEntries(Object.entries(of(name)).filter(([, value]) => value > 0))
    expect(above0("failures_total")).toEqual({
      [job("twice", 'cause="exit"')]: 2,
      [job("never", 'cause="exit"')]: 1,
      [job("later", 'cause="exit"')]: 1,
    })
    expect(above0("restarts_total")).toEqual({ [job("twice", 'result="restarted"')]: 2 })
    expect(of("restart_lateness_seconds_count")).toEqual({ "": 2 })
    const states = Object.keys(of("job_state"))
    expect(states).toContain(job("never", 'state="given_up"'))
    expect(states).toContain(job("later", 'state="waiting"'))
    expect(states.length).toBe(3)
    const failedAt = Date.parse(server.model.job("default", "later")!.status!.conditions!.at(-1)!.lastTransitionTime!)
    expect(of("job_due_timestamp_seconds")).toEqual({
      'namespace="default",job_name="later"': failedAt / 1_000 + 3_600,
    })
    const verbs = ["get", "list", "create", "delete", "watch"] as const
    const counted = async (verb: string) => {
      const calls = (await samples()).filter(
        ({ name, labels }) => name === "flickr_operator_api_calls_total" && labels.startsWith(`verb="${verb}"`),
      )
      return calls.reduce((total, { value }) => total + value, 0)
    }
    const made = verbs.map((verb) => server.calls.filter((call) => call.verb === verb).length)
    // The answer to an Event may still be on its way.
    for (let tries = 0; tries < 50 && !Bun.deepEquals(await Promise.all(verbs.map(counted)), made); tries++)
      await Bun.sleep(10)
    expect(await Promise.all(verbs.map(counted))).toEqual(made)
    expect(of("watch_restarts_total")).toEqual({
      'namespace="default",resource="jobs"': 0,
      'namespace="default",resource="pods"': 0,
    })
    expect(of("ready")).toEqual({ 'namespace="default"': 1 })
    expect(isBack(server, twice)).toBe(true)
    expect((await get("/metrics")).type).toBe("text/plain; version=0.0.4; charset=utf-8")
  })

  test("the text is clean by Prometheus' rules, and by promtool where that is there", async () => {
    const server = await serve()
    const { life, get } = observed(server)
    run(server, "load-a", [exits(3), {}])
    await seen(life, "load-a", /restarted in/)
    const { text } = await get("/metrics")
    expect(lint(text)).toEqual([])
    if (!Bun.which("promtool")) return
    const { exitCode, stdout, stderr } = Bun.spawnSync(["promtool", "check", "metrics"], { stdin: Buffer.from(text) })
    expect([exitCode, `${stdout}${stderr}`]).toEqual([0, ""])
  })

  test.each([
    ["a counter without _total", "# HELP a_seconds A.\n# TYPE a_seconds counter\na_seconds 1\n"],
    ["a sample without HELP", "# TYPE a_total counter\na_total 1\n"],
    ["a unit that is no base unit", "# HELP a_milliseconds A.\n# TYPE a_milliseconds gauge\na_milliseconds 1\n"],
    ["a sample twice", "# HELP a A.\n# TYPE a gauge\na 1\na 2\n"],
  ])("the check itself finds %s", (_, text) => expect(lint(text)).not.toEqual([]))

  test("each selected Job has all its counters at 0 before anything happens to it (H43)", async () => {
    const server = await serve()
    const { life, samples } = observed(server, { JOB_SELECTOR: "!other" })
    stand(server, "load-a", { status: {} })
    stand(server, "load-b", { status: {}, metadata: { labels: { other: "yes" } } })
    await seen(life, "load-a", /running/)
    const counters = (await samples()).filter(({ name }) => /^flickr_operator_(failures|restarts)_total$/.test(name))
    const of = (name: string, label: string) =>
      counters
        .filter((s) => s.name.endsWith(name))
        .map(({ labels }) => new RegExp(`${label}="(\\w+)"`).exec(labels)?.[1])
    expect(of("failures_total", "cause")).toEqual(["oom", "evicted", "deadline", "exit", "unknown"])
    const results = ["restarted", "replaced", "rejected", "changed", "cancelled", "namespace_gone", "interrupted"]
    expect(of("restarts_total", "result")).toEqual(results)
    expect(counters.every(({ labels, value }) => labels.includes('job_name="load-a"') && value === 0)).toBe(true)
  })

  test("the number of series is bounded, whatever the exit codes; those of a Job gone for an hour go", async () => {
    const server = await serve()
    let at = 0
    const metrics = new Metrics({ monotonic: () => at as Monotonic })
    const life = live(server)
    stand(server, "stays", { status: {} })
    await seen(life, "stays", /running/)
    const failed = (name: string, cause: Cause) => metrics.observe(failureOf(name, cause))
    for (let code = 1; code <= 255; code++) for (const name of ["stays", "goes"]) failed(name, `exit:${code}`)
    failed("stays", "oom")
    const failures = async (atMs: number) => {
      at = atMs
      return parse((await Array.fromAsync(metrics.text(life.operator, ["default"]))).join("")).filter(({ name }) =>
        name.endsWith("_failures_total"),
      )
    }
    const first = await failures(0)
    expect(first.length).toBe(2 * 5)
    expect(first.flatMap(({ value }) => value || []).sort()).toEqual([1, 255, 255])
    expect((await failures(3_500_000)).length).toBe(10)
    const later = await failures(3_700_000)
    expect(later.length).toBe(5)
    expect(later.every(({ labels }) => labels.includes('"stays"'))).toBe(true)
    kubectlDelete(server, "stays")
    await until("gone", () => life.operator.states().length === 0)
    expect((await failures(7_600_000)).length).toBe(0)
  })

  test("the counts of all Jobs that are there are kept; of those that are gone, the last 10,000", async () => {
    const metrics = new Metrics()
    const states = Array.from({ length: 10_001 }, (_, i) => ({ key: `default/j${i}`, state: "running" }))
    const operator = { states: () => states, liveness: { watches: new Map() } } as unknown as Operator
    const fail = (...names: string[]) => {
      for (const name of names) metrics.observe(failureOf(name, "exit:1"))
    }
    const gone = Array.from({ length: 10_001 }, (_, i) => `gone${i}`)
    const failures = async () => {
      const text = (await Array.fromAsync(metrics.text(operator, []))).join("")
      const samples = parse(text).filter(({ name }) => name.endsWith("_failures_total"))
      const sums = Map.groupBy(samples, ({ labels }) => /job_name="(\w+)"/.exec(labels)?.[1])
      return (name: string) => sums.get(name)?.reduce((sum, { value }) => sum + value, 0)
    }
    fail("j5", ...gone.slice(0, 5_000))
    const first = await failures()
    expect(["j5", "j10000", "gone0"].map(first)).toEqual([1, 0, 1])
    fail("j5", "j10000", ...gone.slice(5_000))
    const second = await failures()
    expect(["j5", "j10000", "gone0", "gone1", "gone10000"].map(second)).toEqual([2, 1, undefined, 1, 1])
  })

  test("of 10,000 Jobs, a scrape keeps nothing in memory", async () => {
    const metrics = new Metrics()
    const states = Array.from({ length: 10_000 }, (_, i) => ({ key: `default/j${i}`, state: "running" }))
    const operator = { states: () => states, liveness: { watches: new Map() } } as unknown as Operator
    const heldBytes = () => {
      Bun.gc(true)
      return heapStats().heapSize
    }
    const before = heldBytes()
    let [lines, longest] = [0, 0]
    for await (const piece of metrics.text(operator, [])) {
      lines += piece.split("\n").length
      longest = Math.max(longest, piece.length)
    }
    expect(lines).toBeGreaterThan(130_000)
    expect(longest).toBeLessThan(1 << 20)
    expect(heldBytes() - before).toBeLessThan(8 << 20)
  })

  test("a Job whose create is held up is `restarting`, and due since it was", async () => {
    const server = await serve()
    server.fault(
      { verb: "create", resource: "jobs", when: ({ body }) => JSON.stringify(body).includes('"name":"load-a"') },
      { status: 503 },
      { times: 999 },
    )
    const { life } = observed(server)
    const job = stand(server, "load-a")
    await seen(life, "load-a", /held up/)
    const failedAt = Date.parse(job.status!.conditions![0]!.lastTransitionTime!)
    expect(life.operator.states()).toEqual([{ key: "default/load-a", state: "restarting", dueAt: failedAt }])
  })
})

test("alerts.yaml and dashboard.json ask for metrics that there are, and the dashboard for each of them", async () => {
  const { get } = observed(await serve())
  const { text } = await get("/metrics")
  const there = [...text.matchAll(/^# TYPE (\S+)/gm)].map(([, name]) => name!)
  for (const file of ["alerts.yaml", "dashboard.json"]) {
    const asked = readFileSync(join(import.meta.dir, "../../deploy/monitoring", file), "utf8").matchAll(
      /\bflickr_operator_\w+/g,
    )
    const names = new Set([...asked].map(([name]) => name.replace(/_bucket$/, "")))
    expect([...names].filter((name) => !there.includes(name))).toEqual([])
    if (file === "dashboard.json") expect(there.filter((name) => !names.has(name))).toEqual([])
  }
})

const SHOWN_STATES = Object.keys({
  running: true,
  succeeded: true,
  suspended: true,
  failing: true,
  failed: true,
  waiting: true,
  restarting: true,
  rejected: true,
  given_up: true,
  left_alone: true,
  deleting: true,
} satisfies Record<ShownState, true>)

test("alerts.yaml, dashboard.json and monitoring.md name the states and results that there are", () => {
  const pages = ["deploy/monitoring/alerts.yaml", "deploy/monitoring/dashboard.json", ".github/docs/monitoring.md"]
  const [alerts, dashboard, page] = pages.map((file) => readFileSync(join(import.meta.dir, "../..", file), "utf8"))
  const asked = [...`${alerts}${dashboard}`.matchAll(/\b(?:state|result)=~?\\?"([\w|]+)/g)].flatMap(([, all]) =>
    all!.split("|"),
  )
  expect(asked.length).toBeGreaterThan(4)
  expect(asked.filter((word) => ![...SHOWN_STATES, ...RESULTS].includes(word as never))).toEqual([])
  const named = (label: string) =>
    new RegExp(`^.*\`${label}\` \\|(.*)$`, "m").exec(page!)?.[1]?.match(/`\w+`/g)?.map(String)
  expect(named("state")).toEqual(SHOWN_STATES.map((state) => `\`${state}\``))
  expect(named("result")).toEqual(RESULTS.map((result) => `\`${result}\``))
})

test("dashboard.json and alerts.yaml keep Jobs of the same name in two namespaces apart", () => {
  for (const file of ["alerts.yaml", "dashboard.json"]) {
    const text = readFileSync(join(import.meta.dir, "../../deploy/monitoring", file), "utf8")
    const labels = [...text.matchAll(/\bby \(([^)]*job_name[^)]*)\)/g)].map(([, names]) => names)
    expect(new Set(labels)).toEqual(new Set(["namespace, job_name"]))
  }
})

describe("/livez and /readyz", () => {
  test("/readyz follows whether each namespace was listed, and whether its watch is silent for too long", async () => {
    const server = await serve()
    const lift = server.fault({ verb: "list", resource: "jobs", namespace: "other" }, { status: 503 }, { times: 999 })
    const { life, get } = observed(server, { NAMESPACE: "default,other", CHECK_INTERVAL: "10" })
    await until("listed", () => life.operator.liveness.staleForMs("default") === undefined)
    life.clock.go(1)
    expect(await get("/readyz")).toMatchObject({
      status: 503,
      text: "namespace other: not listed yet; the log says why\n",
    })
    lift()
    await until("both listed", () => life.operator.liveness.staleForMs("other") === undefined)
    expect(await get("/readyz")).toMatchObject({ status: 200, text: "ok\n" })
    life.stop()
    await life.done
    expect(await get("/readyz")).toMatchObject({ status: 200 })
    life.clock.jump(175_000)
    expect(await get("/readyz")).toMatchObject({ status: 200 })
    life.clock.jump(10_000)
    expect(await get("/readyz")).toMatchObject({
      status: 503,
      text: expect.stringMatching(
        /^namespace default: nothing heard of its Jobs for 3m\d+s; the log says why\nnamespace other/,
      ),
    })
  })

  test("alive while the loop turns, at start too; not when it has not turned for two minutes", async () => {
    const server = await serve()
    const { life, get } = observed(server)
    expect(await get("/livez")).toMatchObject({ status: 200, text: "ok\n" })
    await until("turns", () => callsOf(server, "watch").length > 0)
    life.stop()
    await life.done
    expect(await get("/livez")).toMatchObject({ status: 200 })
    life.clock.jump(121_000)
    expect(await get("/livez")).toMatchObject({ status: 503, text: "the loop has not turned for 2m\n" })
  })

  test("GET and HEAD only, three paths only", async () => {
    const { get } = observed(await serve())
    expect((await get("/livez", "HEAD")).text).toBe("")
    for (const method of ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
      expect([method, (await get("/livez", method)).status]).toEqual([method, 405])
    for (const path of ["/", "/config", "/livez/", "/debug"])
      expect([path, (await get(path)).status]).toEqual([path, 404])
  })

  test("a request with a Host that is none is answered, and nothing of it gets into the log", async () => {
    const code = `
      const { answerHealth } = await import(${JSON.stringify(join(import.meta.dir, "../../operator.ts"))})
      const operator = { liveness: { isRunning: () => true } }
      const fetch = (request) => answerHealth(request, operator, {}, { namespaces: [] })
      const { port } = Bun.serve({ port: 0, hostname: "127.0.0.1", development: false, fetch })
      const asked = Promise.withResolvers()
      const client = require("node:net").connect(port, "127.0.0.1")
      client.write("GET /livez HTTP/1.1\\r\\nHost: forged:99999999\\r\\n\\r\\n")
      client.once("data", (answer) => asked.resolve(answer.toString().split("\\r\\n")[0]))
      console.log(await asked.promise)
      process.exit()`
    const child = Bun.spawn([process.execPath, "-e", code], { stdout: "pipe", stderr: "pipe" })
    const [out, err] = await Promise.all([child.stdout.text(), child.stderr.text()])
    expect([out, err]).toEqual([expect.stringMatching(/^HTTP\/1.1 40[04]/), ""])
  })

  test("a port that is taken is said, and stops nothing", async () => {
    const server = await serve()
    const { life, metrics } = observed(server)
    const taken = Bun.serve({ port: 0, hostname: "::", fetch: () => new Response() })
    endings.push(() => taken.stop(true))
    const said: string[] = []
    const say: Log = (level, text) => void said.push(`${level}: ${text}`)
    serveHealth(taken.port!, life.operator, metrics, life.config, say)
    expect(said).toEqual([
      expect.stringMatching(
        new RegExp(`^warning: health endpoints are disabled: cannot listen on HEALTH_PORT ${taken.port}: .*in use`),
      ),
    ])
  })
})

const jobNamed = (name: string) => ({ key: `default/${name}`, namespace: "default", name, uid: `uid-${name}` })
const failureOf = (name: string, cause: Cause): Fact => ({
  kind: "FailureSeen",
  job: jobNamed(name),
  failedAt: 0,
  cause,
  reason: "",
  evidence: { pods: [], logs: new Map(), morePods: 0 },
})
const gaveUp = (name: string, because = "why"): Fact => ({ kind: "GaveUp", job: jobNamed(name), because, cause: "oom" })

/** What the notifier needs of a World, with a clock that only its own pauses move. */
function quickNotifier(url: string) {
  const kill = new AbortController()
  endings.push(() => kill.abort())
  const said: string[] = []
  const slept: number[] = []
  let now = Date.parse("2026-03-01T12:00:00Z")
  const clock: Clock = {
    random: () => 0.5,
    now: () => now,
    monotonic: () => now as Monotonic,
    sleep: async (ms) => {
      if (ms > 0) slept.push(ms)
      now += Math.max(0, ms)
      await Promise.resolve()
    },
  }
  const say: Log = (level, text) => void said.push(`${level}: ${text}`)
  return { tell: notifier(url, { clock, kill: kill.signal }, say), said, slept }
}

/** A receiver of notifications: what it was sent, and how it answers. */
function receiver(answer: () => Response | Promise<Response> = () => new Response("ok")) {
  const posts: Record<string, string>[] = []
  const server = Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    async fetch(request) {
      posts.push({
        method: request.method,
        type: request.headers.get("content-type") ?? "",
        ...((await request.json()) as object),
      })
      return answer()
    },
  })
  endings.push(() => server.stop(true))
  return { posts, NOTIFY_URL: `http://127.0.0.1:${server.port}/s3cr3t-topic?token=s3cr3t` }
}
const messages = ({ posts }: ReturnType<typeof receiver>) => posts.map(({ message }) => message)

describe("NOTIFY_URL", () => {
  test("a Job that is given up is one POST that ntfy, Gotify and Slack read; its return is one more", async () => {
    const [server, phone] = [await serve(), receiver()]
    const life = live(server, { RESTART_RULES: "any=never", NOTIFY_URL: phone.NOTIFY_URL })
    const job = stand(server, "load-a")
    await until("told", () => phone.posts.length === 1)
    const text = expect.stringMatching(/^\[default\/load-a\] given up: rule any=never; to go on, .* \(cause unknown\)$/)
    expect(phone.posts[0]).toEqual({
      method: "POST",
      type: "application/json",
      title: project.name,
      message: text,
      text,
    } as never)
    person(server, "patch", "load-a", { metadata: { annotations: { [`${PREFIX}restart-now`]: "1" } } })
    await until("back", () => isBack(server, job) && phone.posts.length > 1)
    expect(messages(phone).slice(1)).toEqual([
      expect.stringMatching(/^back after an alarm: \[default\/load-a\] restarted in/),
    ])
    expect(life.said.map(({ text }) => text).join()).not.toContain("s3cr3t")
  })

  test("a given-up Job that its owner makes anew is back, too", async () => {
    const [server, phone] = [await serve(), receiver()]
    live(server, { RESTART_RULES: "any=never", NOTIFY_URL: phone.NOTIFY_URL })
    stand(server, "load-a")
    await until("told", () => phone.posts.length === 1)
    kubectlDelete(server, "load-a")
    stand(server, "load-a", { status: {} })
    await until("back", () => phone.posts.length === 2)
    expect(messages(phone)[1]).toMatch(/^back after an alarm: .*it is running$/)
  })

  test("a Job that cannot be created again is told once, however often it is tried", async () => {
    const [server, phone] = [await serve(), receiver()]
    const intended = (name: string) =>
      ({
        verb: "create",
        resource: "jobs",
        when: (call: Call) => bodyName(call).startsWith(`${name}-restart-`),
      }) as const
    const created = (name: string) =>
      ({ verb: "create", resource: "jobs", when: (call: Call) => bodyName(call) === name && !isDryRun(call) }) as const
    // Each try writes two forms of an intent.
    server.fault(intended("before"), { status: 422 }, { times: 6 })
    server.fault(created("after"), { status: 422 }, { times: 3 })
    server.fault(created("slow"), { status: 500 }, { times: 40 })
    const life = live(server, { NOTIFY_URL: phone.NOTIFY_URL }, { rate: 1_000 })
    const jobs = ["before", "after", "slow", "well"].map((name) => stand(server, name))
    await allBack(server, jobs)
    await until("all told", () => phone.posts.length === 6)
    const about = (name: string) => messages(phone).filter((text) => text?.includes(`/${name}]`))
    expect(about("before")).toEqual([
      expect.stringMatching(/not deleted, because the cluster would not take it back: 422/),
      expect.stringMatching(/^back/),
    ])
    expect(about("after")).toEqual([
      expect.stringMatching(/its restart is held up, next try in \S+: 422/),
      expect.stringMatching(/^back/),
    ])
    expect(about("slow")).toEqual([
      expect.stringMatching(/its restart is held up, next try in \S+: 500/),
      expect.stringMatching(/^back/),
    ])
    expect(life.factsOf("RestartRejected", "before").length).toBe(3)
  })

  test.each([
    ["that answers 500", () => receiver(() => new Response("s3cr3t", { status: 500 })).NOTIFY_URL, /: answer 500$/],
    [
      "that redirects",
      () => receiver(() => new Response(null, { status: 301, headers: { Location: "/" } })).NOTIFY_URL,
      /: answer 301$/,
    ],
    ["that is not there", () => "http://127.0.0.1:1/s3cr3t", /: ECONNREFUSED$/],
    ["without an address", () => "http://s3cr3t.invalid/", /: \w+$/],
    ["that speaks no TLS", () => receiver().NOTIFY_URL.replace("http:", "https:"), /: [A-Z_]+$/],
  ])("a receiver %s is said once per message, after a second try, without its URL", async (_, urlOf, words) => {
    const server = await serve()
    const life = live(server, { RESTART_RULES: "any=never", NOTIFY_URL: urlOf() }, { rate: 1_000 })
    stand(server, "load-a")
    await until("said", () => life.said.some(({ text }) => /notification/.test(text)))
    const said = life.said.filter(({ text }) => /notification/.test(text))
    expect(said).toEqual([{ level: "warning", text: expect.stringMatching(words), lines: [] }])
    expect(life.said.map(({ text }) => text).join()).not.toContain("s3cr3t")
  })

  test("Slack's control characters are escaped in text, and plain in message (H44)", async () => {
    const phone = receiver()
    const why = "refused: <!channel> <https://x.test|the docs> & more"
    quickNotifier(phone.NOTIFY_URL).tell({ kind: "RestartRejected", job: jobNamed("load-a"), why, retryMs: 1_000 })
    await until("told", () => phone.posts.length === 1)
    expect(phone.posts[0]).toMatchObject({
      message: expect.stringContaining(why),
      text: expect.stringContaining("refused: &lt;!channel&gt; &lt;https://x.test|the docs&gt; &amp; more"),
    })
  })

  test("no text of others calls a whole channel, or shows a false link, in Mattermost (H44)", async () => {
    const phone = receiver()
    const why = "refused: @channel @all [the docs](https://x.test) ![x](y) me@x.test"
    quickNotifier(phone.NOTIFY_URL).tell({ kind: "RestartRejected", job: jobNamed("load-a"), why, retryMs: 1_000 })
    await until("told", () => phone.posts.length === 1)
    const { message, text = "" } = phone.posts[0] ?? {}
    expect(message).toContain(why)
    expect(text).not.toMatch(/@\w|\]\(/)
    expect(text.replaceAll("\u200b", "")).toBe(message as string)
  })

  test.each([
    ["seconds", "60", 60_000],
    ["a date", "Sun, 01 Mar 2026 12:01:00 GMT", 60_000],
    ["nothing that can be read", "soon", 5_000],
  ])("a rejected message is sent again when Retry-After asks for it, by %s (J19)", async (_, after, waitMs) => {
    let rejections = 1
    const phone = receiver(() =>
      rejections-- > 0 ? new Response("", { status: 429, headers: { "Retry-After": after } }) : new Response("ok"),
    )
    const { tell, slept } = quickNotifier(phone.NOTIFY_URL)
    tell(gaveUp("load-a"))
    await until("taken", () => phone.posts.length === 2)
    // The pause and the backoff pass at the same time.
    expect(Math.max(...slept)).toBe(waitMs)
  })

  test("a message is tried for a day, ever more rarely, and no longer (J19)", async () => {
    const phone = receiver(() => new Response("", { status: 500 }))
    const { tell, said, slept } = quickNotifier(phone.NOTIFY_URL)
    tell(gaveUp("load-a"))
    await until("given up", () => said.length === 2)
    expect(said[1]).toContain("given up after a day: answer 500")
    expect(slept.slice(0, 4)).toEqual([5_000, 10_000, 20_000, 40_000])
    expect(Math.max(...slept)).toBe(900_000)
    expect(slept.reduce((sum, ms) => sum + ms, 0)).toBeWithin(86_400_000, 86_400_000 + 900_001)
    expect(phone.posts.length).toBeLessThan(120)
  })

  test("one Job's message that is rejected for ever does not hold up another Job's", async () => {
    const isBad = () => phone.posts.at(-1)?.message?.includes("/bad]")
    const phone: ReturnType<typeof receiver> = receiver(() => new Response("", { status: isBad() ? 400 : 200 }))
    const { tell } = quickNotifier(phone.NOTIFY_URL)
    for (const name of ["bad", "good"]) tell(gaveUp(name))
    await until("both sent", () => messages(phone).some((message) => message?.includes("/good]")))
  })

  test("a message goes through the proxy of the environment, also in a pod, as monitoring.md says", async () => {
    const proxy = receiver()
    const before = process.env.HTTP_PROXY
    endings.push(() => {
      if (before === undefined) delete process.env.HTTP_PROXY
      else process.env.HTTP_PROXY = before
    })
    process.env.HTTP_PROXY = new URL(proxy.NOTIFY_URL).origin
    quickNotifier("http://hooks.example.test/topic").tell(gaveUp("load-a"))
    await until("taken by the proxy", () => proxy.posts.length === 1)
    const text = readFileSync(join(import.meta.dir, "../../.github/docs/monitoring.md"), "utf8").replaceAll("\n", " ")
    expect(text).toMatch(/They go through `HTTPS_PROXY`, or `HTTP_PROXY` for `http:\/\/`, unless `NO_PROXY`/)
  })

  test("F03 a receiver whose certificate nobody trusts gets nothing, NODE_TLS_REJECT_UNAUTHORIZED or not", async () => {
    const stranger = await serveHttps(() => ({}), { identity: await identityOf(foreign, "127.0.0.1") })
    endings.push(stranger.stop, () => void delete process.env.NODE_TLS_REJECT_UNAUTHORIZED)
    process.env.NODE_TLS_REJECT_UNAUTHORIZED = "0"
    const { tell, said } = quickNotifier(`${stranger.address}/s3cr3t`)
    tell(gaveUp("load-a"))
    await until("rejected", () => said.length > 0 || stranger.calls.length > 0)
    expect([said[0], stranger.calls]).toEqual([expect.stringMatching(/was not taken.*(VERIFY|SELF_SIGNED)/), []])
  })

  test("a long message is cut between characters, for receivers reject half of an emoji", async () => {
    const phone = receiver()
    const { tell } = quickNotifier(phone.NOTIFY_URL)
    for (const more of ["", "x"]) tell(gaveUp(`load${more}`, "😀".repeat(600)))
    await until("told", () => phone.posts.length === 2)
    expect(phone.posts.map(({ message, text }) => `${message}${text}`.isWellFormed())).toEqual([true, true])
  })

  test("messages that wait are bounded: the next one is dropped, which is said", async () => {
    const { tell, said } = quickNotifier(receiver(() => new Promise(() => {})).NOTIFY_URL)
    for (let i = 0; i <= 500; i++) tell(gaveUp(`load-${i}`))
    expect(said).toEqual(["warning: a notification is dropped: 500 wait for NOTIFY_URL already"])
  })

  test("an alarm is told once, that of the Job's successor again, and its recovery under any uid (J19)", async () => {
    const phone = receiver()
    const { tell } = quickNotifier(phone.NOTIFY_URL)
    const ofSuccessor = (fact: Fact): Fact => ({ ...fact, job: { ...jobNamed("load-a"), uid: "next" } }) as Fact
    tell(gaveUp("load-a", "first"))
    tell(gaveUp("load-a", "the same again"))
    tell({ kind: "DeletedByOthers", job: jobNamed("load-a"), isRestart: false })
    tell(ofSuccessor(gaveUp("load-a", "second")))
    tell({ kind: "LeftAlone", job: jobNamed("load-a"), because: "it is running", healthy: true, phase: "running" })
    tell(ofSuccessor(gaveUp("load-a", "third")))
    await until("told", () => phone.posts.length === 4)
    const words = messages(phone).map((text) => /given up: (\w+)|back/.exec(text ?? "")?.[0])
    expect(words).toEqual(["given up: first", "given up: second", "back", "given up: third"])
  })

  test("alarms of two kinds that take turns are told once each", async () => {
    const phone = receiver()
    const { tell } = quickNotifier(phone.NOTIFY_URL)
    const job = jobNamed("load-a")
    for (const retryMs of [1, 2, 3]) {
      tell({ kind: "HeldUp", job, waitsFor: "its pods", blockers: "", forMs: 300_000, isAlarm: true })
      tell({ kind: "Retrying", what: "its restart is held up", job, why: "503", retryMs, isAlarm: true })
    }
    tell({ kind: "LeftAlone", job, because: "it is running", healthy: true, phase: "running" })
    await until("back", () => messages(phone).at(-1)?.startsWith("back"))
    expect(phone.posts.length).toBe(3)
  })

  test("a receiver that never answers holds up no restart", async () => {
    const [server, phone] = [await serve(), receiver(() => new Promise(() => {}))]
    const life = live(server, { RESTART_RULES: "exit:4=never", NOTIFY_URL: phone.NOTIFY_URL })
    run(server, "never", [exits(4)])
    await until("told", () => phone.posts.length === 1)
    await allBack(server, [stand(server, "load-a"), stand(server, "load-b")])
    life.kill()
    await life.done
  })
})
