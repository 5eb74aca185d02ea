// The dashboard's server, as a process against the embedded API server: who may ask, what it says, and what it does.
// The page itself is tried in a real browser, in e2e/dashboard.ts.
import { describe, expect, test } from "bun:test"
import { connect as connectTo } from "node:net"
import { join } from "node:path"
import { Dashboard } from "../../cli.ts"
import {
  connect,
  draftOf,
  intentFor,
  PREFIX,
  RECORD,
  RECORD_JOB,
  type Job as RealJob,
  readSettings,
  SETTINGS_MAP,
} from "../../operator.ts"
import { putRecord } from "../apiserver/history.ts"
import type { Job } from "../apiserver/model.ts"
import {
  allBack,
  callsOf,
  current,
  deletions,
  endings,
  exits,
  fail,
  failedAgo,
  folder,
  HELD,
  Hurried,
  live,
  person,
  run,
  type Server,
  serve,
  stand,
  tidyUp,
  until,
} from "./acting_kit.ts"

const program = join(import.meta.dir, "../../operator.ts")
tidyUp()

type Lane = {
  job: string
  uid: string
  state: string
  cause?: string
  failures: { name: string; cause: string; failedAt: number; startedAt?: number }[]
  nextRestartAt?: number
  why: string
  decision: string
  rules: object[]
  notRestartable?: string
  isPaused: boolean
}
type Message = {
  settings: string[]
  areAll: boolean
  lanes: Record<string, Lane | null>
  problems: Record<string, string>
}

/** A dashboard's process, until the test ends. */
function launch(server: Server, { env = {}, options = [] as string[], user = "admin" } = {}) {
  const KUBECONFIG = server.writeKubeconfig(join(folder, user), { user })
  const child = Bun.spawn([process.execPath, program, "dashboard", "--no-open", ...options], {
    env: {
      HOME: folder,
      PATH: process.env.PATH ?? "",
      KUBECONFIG,
      JOB_SELECTOR: "!other",
      RESTART_DELAY: "1h",
      ...env,
    },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  })
  endings.push(() => child.kill("SIGKILL"))
  return child
}

/** A dashboard at work, and what a browser would send it. */
async function dashboard(server: Server, how: Parameters<typeof launch>[1] = {}) {
  const child = launch(server, how)
  const output = new Response(child.stdout).body!.getReader()
  let printed = ""
  while (!printed.includes("\n")) {
    const { done, value } = await output.read()
    if (done) throw new Error(`it ended: ${await child.stderr.text()}`)
    printed += new TextDecoder().decode(value)
  }
  const address = new URL(printed.trim().split(" ").at(-1) ?? "")
  const { origin } = address
  const cookie = (await fetch(address)).headers.get("set-cookie")?.split(";")[0] ?? ""
  const get = (path: string, headers: Record<string, string> = {}) =>
    fetch(origin + path, { headers: { cookie, ...headers } })
  const post = (path: string, body: unknown, headers: Record<string, string> = {}) =>
    fetch(origin + path, {
      method: "POST",
      headers: { cookie, origin, "content-type": "application/json", ...headers },
      body: JSON.stringify(body),
    })
  return { child, address, origin, cookie, get, post, page: async () => follow((await get("/events")).body!) }
}

/** What an open page knows: the lanes and problems as the events tell them. */
function newPage() {
  const lanes = new Map<string, Lane>()
  const messages: Message[] = []
  const page = {
    lanes,
    messages,
    problems: {} as Message["problems"],
    take(message: Message) {
      messages.push(message)
      for (const [job, lane] of Object.entries(message.lanes)) lane ? lanes.set(job, lane) : lanes.delete(job)
      page.problems = message.problems
    },
  }
  return page
}

/** Reads events as a page does. */
async function follow(events: ReadableStream<string | Uint8Array>) {
  const page = newPage()
  const reader = events.getReader()
  endings.push(() => reader.cancel().catch(() => {}))
  const read = async () => {
    const decoder = new TextDecoder()
    let rest = ""
    for (;;) {
      const { done, value } = await reader.read()
      if (done) return
      const parts = (rest + (typeof value === "string" ? value : decoder.decode(value, { stream: true }))).split("\n\n")
      rest = parts.pop() ?? ""
      for (const part of parts) page.take(JSON.parse(part.replace(/^data: /, "")))
    }
  }
  void read().catch(() => {})
  await until("everything", () => page.messages.length > 0)
  return page
}

/** A dashboard without HTTP, in a time of its own that runs faster; `read` is what it reads its settings with again. */
function hurriedDashboard(
  server: Server,
  { settings = {} as Record<string, string>, user = "admin", read = () => ({}) as Record<string, string> } = {},
) {
  const env = { NAMESPACE: "default", JOB_SELECTOR: "!other", RESTART_DELAY: "1h", ...settings }
  const { config } = readSettings(env)
  const stop = new AbortController()
  endings.push(() => stop.abort(new Error("stopped")))
  const signals = { stop: stop.signal, kill: stop.signal }
  const cluster = connect(server.sourceFor(user), {})
  const world = { cluster, clock: new Hurried(50), emit() {}, config, ...signals }
  const readAgain = async (signal: AbortSignal) => {
    await cluster.getConfigMap("default", SETTINGS_MAP, signal)
    const changed = read()
    return { config: readSettings({ ...env, ...changed }).config, from: JSON.stringify(changed) }
  }
  return { dashboard: new Dashboard({ world, from: "{}", readSettings: readAgain }), stop }
}

/** What its open page is told. */
async function hurriedPage(server: Server, how: Parameters<typeof hurriedDashboard>[1] = {}) {
  const { dashboard } = hurriedDashboard(server, how)
  await dashboard.start()
  return Object.assign(await follow(dashboard.events()), { dashboard })
}

const hostile = '<img src=x onerror=alert(1)></script>\u202e\u0007\u001b[2J" onload="'

describe("Access", () => {
  test("the printed address sets a cookie for this site alone, and leads to the page without its token", async () => {
    const { address, get, origin } = await dashboard(await serve())
    expect(address.searchParams.get("token")).toMatch(/^[\w-]{43}$/)
    expect(address.hostname).toBe("127.0.0.1")
    const answer = await fetch(address)
    expect(answer.headers.get("set-cookie")).toMatch(/; HttpOnly; SameSite=Strict; Path=\/$/)
    expect(answer.headers.get("refresh")).toBe("0; url=/")
    expect(await answer.text()).toBe("")
    const page = await get("/")
    expect([page.status, page.headers.get("content-type")]).toEqual([200, "text/html; charset=utf-8"])
    expect(await page.text()).not.toContain(address.searchParams.get("token") as string)
    expect(new URL(origin).port).toBe(address.port)
    const posted = await fetch(address, { method: "POST", headers: { origin } })
    expect([posted.status, posted.headers.get("set-cookie")]).toEqual([403, null])
  })

  const strangers: [string, string, (url: URL, cookie: string) => RequestInit & { path?: string }, number][] = [
    ["no token", "/", () => ({}), 403],
    ["a wrong token", "/?token=wrong", () => ({}), 403],
    ["a token of the right length", `/?token=${"A".repeat(43)}`, () => ({}), 403],
    ["a token of the right length that is not ASCII", `/?token=${"%C3%A9".repeat(43)}`, () => ({}), 403],
    ["an empty token", "/?token=", (_, cookie) => ({ headers: { cookie } }), 403],
    ["no cookie, for the events", "/events", () => ({}), 403],
    ["no cookie, for a failure", "/failure?job=default/load-a", () => ({}), 403],
    ["a wrong cookie", "/", ({ port }) => ({ headers: { cookie: `dashboard-${port}=${"A".repeat(43)}` } }), 403],
    ["a foreign Host", "/", ({ port }, cookie) => ({ headers: { cookie, host: `evil.example:${port}` } }), 403],
    ["the right Host at another port", "/", (_, cookie) => ({ headers: { cookie, host: "127.0.0.1:1" } }), 403],
    ["a foreign Origin", "/events", (_, cookie) => ({ headers: { cookie, origin: "http://evil.example" } }), 403],
    ["the Origin null", "/events", (_, cookie) => ({ headers: { cookie, origin: "null" } }), 403],
    ["another port's Origin", "/failure", (_, cookie) => ({ headers: { cookie, origin: "http://127.0.0.1:1" } }), 403],
    ["POST for the page", "/", ({ origin }, cookie) => ({ method: "POST", headers: { cookie, origin } }), 405],
    ["PUT", "/", ({ origin }, cookie) => ({ method: "PUT", headers: { cookie, origin } }), 405],
    ["DELETE", "/action", ({ origin }, cookie) => ({ method: "DELETE", headers: { cookie, origin } }), 405],
    ["HEAD", "/", ({ origin }, cookie) => ({ method: "HEAD", headers: { cookie, origin } }), 405],
    ["OPTIONS", "/action", ({ origin }, cookie) => ({ method: "OPTIONS", headers: { cookie, origin } }), 405],
    ["GET for an action", "/action", (_, cookie) => ({ headers: { cookie } }), 405],
    ["a path that is none", "/constructor", (_, cookie) => ({ headers: { cookie } }), 404],
    ["an action without Origin", "/action", (_, cookie) => ({ method: "POST", headers: { cookie } }), 403],
    [
      "a foreign form",
      "/action",
      (_, cookie) => ({ method: "POST", headers: { cookie, origin: "http://evil.example" }, body: "a=b" }),
      403,
    ],
    [
      "an action that a form could send",
      "/action",
      ({ origin }, cookie) => ({
        method: "POST",
        headers: { cookie, origin, "content-type": "text/plain" },
        body: '{"job":"default/load-a"}',
      }),
      403,
    ],
  ]
  test("a stranger gets 403, 404 or 405, and no information", async () => {
    const server = await serve()
    stand(server, "load-a", { status: { active: 1 } })
    const { address, cookie } = await dashboard(server)
    const from = server.calls.length
    for (const [what, path, request, status] of strangers) {
      const answer = await fetch(address.origin + path, { ...request(address, cookie), redirect: "manual" })
      expect([what, answer.status, await answer.text()]).toEqual([what, status, ""])
      expect([what, answer.headers.get("set-cookie"), answer.headers.get("server")]).toEqual([what, null, null])
    }
    expect(server.calls.slice(from).filter(({ verb }) => verb !== "watch")).toEqual([])
  })

  test("a stranger's request with a Host that is none gets 403, and nothing of it reaches the terminal", async () => {
    const { child, address } = await dashboard(await serve())
    const answered = Promise.withResolvers<string>()
    const client = connectTo(Number(address.port), "127.0.0.1", () =>
      client.write("GET / HTTP/1.1\r\nHost: forged:99999999\r\n\r\n"),
    )
    client.once("data", (answer) => answered.resolve(String(answer)))
    expect(await answered.promise).toStartWith("HTTP/1.1 403")
    client.destroy()
    child.kill("SIGTERM")
    expect(await child.stderr.text()).not.toContain("forged")
  })

  test("the connections of strangers are not kept, whatever they still have to send", async () => {
    const { address } = await dashboard(await serve())
    for (const rest of ["", "Content-Length: 1000000\r\n"]) {
      const closed = Promise.withResolvers<void>()
      const client = connectTo(Number(address.port), "127.0.0.1", () =>
        client.write(`POST /action HTTP/1.1\r\nHost: ${address.host}\r\n${rest}\r\n`),
      )
      client.once("close", () => closed.resolve()).resume()
      await closed.promise
    }
  })

  test("every answer forbids caches, frames, referrers, and scripts but the page's own", async () => {
    const { origin, get } = await dashboard(await serve())
    for (const answer of [await fetch(origin), await get("/"), await get("/failure?job=default/none")]) {
      const policy = answer.headers.get("content-security-policy") ?? ""
      expect(policy).toContain("default-src 'none'")
      expect(policy).toMatch(/script-src 'sha256-[\w+/=]+';/)
      expect(policy).toMatch(/style-src 'sha256-[\w+/=]+';/)
      expect(policy).toContain("frame-ancestors 'none'")
      expect(policy).not.toMatch(/unsafe|\*|https?:/)
      expect(answer.headers.get("cache-control")).toBe("no-store")
      expect(answer.headers.get("referrer-policy")).toBe("no-referrer")
      expect(answer.headers.get("x-content-type-options")).toBe("nosniff")
      expect(answer.headers.get("access-control-allow-origin")).toBeNull()
    }
  })

  test("only loopback is listened on, both of IPv4 and IPv6", async () => {
    const { child, address } = await dashboard(await serve())
    const listening = async (file: string) =>
      (await Bun.file(`/proc/${child.pid}/net/${file}`).text())
        .split("\n")
        .map((line) => line.trim().split(/\s+/))
        .filter(
          ([, local = "", , state]) =>
            state === "0A" && Number.parseInt(local.split(":")[1] ?? "", 16) === Number(address.port),
        )
        .map(([, local]) => local?.split(":")[0])
    expect(await listening("tcp")).toEqual(["0100007F"])
    const hasIPv6 = (
      await Bun.file("/proc/net/if_inet6")
        .text()
        .catch(() => "")
    ).includes(" lo")
    expect(await listening("tcp6")).toEqual(hasIPv6 ? ["00000000000000000000000001000000"] : [])
  })

  test("a port that is taken is an error that names it", async () => {
    const server = await serve()
    const { address } = await dashboard(server)
    await expect(dashboard(server, { options: ["--port", address.port] })).rejects.toThrow(`port ${address.port}`)
  })

  // Only root may listen on it.
  test.if(process.getuid?.() === 0)("at port 80, which no browser writes into a Host, it answers as well", async () => {
    const { address, get } = await dashboard(await serve(), { options: ["--port", "80"] })
    expect([address.host, (await get("/")).status]).toEqual(["127.0.0.1", 200])
  })

  test("the token is in no log, and SIGTERM ends it with exit code 0", async () => {
    const { child, address, page } = await dashboard(await serve())
    await page()
    child.kill("SIGTERM")
    expect(await child.exited).toBe(0)
    expect(await child.stderr.text()).not.toContain(address.searchParams.get("token") as string)
  })

  test("Ctrl-C ends it also while it lists, before it has printed an address", async () => {
    const server = await serve()
    server.fault({ verb: "list", resource: "jobs" }, { hang: true }, { times: 1 })
    const child = launch(server)
    await until("listing", () => callsOf(server, "list").length > 0)
    child.kill("SIGINT")
    expect([await child.exited, await child.stdout.text()]).toEqual([130, ""])
  })

  test("a start that comes after the stop ends, too", async () => {
    const { dashboard, stop } = hurriedDashboard(await serve())
    stop.abort(new Error("stopped"))
    await dashboard.start()
    expect([...dashboard.entries]).toEqual([])
  })
})

describe("What it shows", () => {
  test("a lane for each selected Job, with its state, cause, due time and past failures", async () => {
    const server = await serve()
    const failed = stand(server, "load-a")
    stand(server, "other", { metadata: { labels: { other: "" } } })
    stand(server, "paused", { metadata: { annotations: { [`${PREFIX}paused`]: "true" } } })
    stand(server, "runs", { status: { startTime: "2026-01-01T00:00:00Z", active: 1 } })
    const past = { startedAt: Date.now() - 7_200_000, failedAt: Date.now() - 5_000, cause: "exit:3" as const }
    putRecord(server.model, "default", "load-a", past, failed.metadata.uid)
    const { lanes } = await (await dashboard(server)).page()
    expect([...lanes.keys()].toSorted()).toEqual(["default/load-a", "default/paused", "default/runs"])
    expect(lanes.get("default/load-a")).toMatchObject({
      state: "waiting",
      cause: "exit:3",
      isPaused: false,
      failures: [{ cause: "exit:3", startedAt: Math.floor(past.startedAt / 1_000) * 1_000 }],
    })
    expect(lanes.get("default/paused")).toMatchObject({ state: "left_alone", isPaused: true })
    expect(lanes.get("default/runs")).toMatchObject({ state: "running", failures: [], notRestartable: "it is running" })
  })

  test("a change and a new record reach an open page, and nothing is listed again while the watches hold", async () => {
    const server = await serve()
    const job = stand(server, "load-a", { status: { active: 1 } })
    const page = await (await dashboard(server)).page()
    const from = server.calls.length
    expect(page.lanes.get("default/load-a")?.state).toBe("running")
    fail(server, "load-a")
    putRecord(
      server.model,
      "default",
      "load-a",
      { startedAt: 0, failedAt: Date.now(), cause: "exit:9" },
      job.metadata.uid,
    )
    await until("failed", () => page.lanes.get("default/load-a")?.cause === "exit:9")
    expect(page.lanes.get("default/load-a")?.state).toBe("waiting")
    person(server, "delete", "load-a", { propagationPolicy: "Background" })
    await until("gone", () => !page.lanes.has("default/load-a"))
    const lists = server.calls.slice(from).filter(({ verb, resource }) => verb === "list" && resource !== "pods")
    expect(lists).toEqual([])
  })

  test("of a Job that is gone nothing is kept, and a list keeps what is known of the others", async () => {
    const server = await serve()
    for (const name of ["load-a", "load-b"]) stand(server, name)
    const { lanes, dashboard } = await hurriedPage(server)
    await until("looked at", () => lanes.get("default/load-a")?.cause && lanes.get("default/load-b")?.cause)
    person(server, "delete", "load-b")
    await until("gone", () => !lanes.has("default/load-b"))
    const entry = dashboard.entries.get("default/load-a")
    await dashboard.list("default", "jobs")
    expect([...dashboard.entries]).toEqual([["default/load-a", entry!]])
    expect(dashboard.entries.get("default/load-a")?.looked).toBeDefined()
  })

  test("a failure that nobody recorded is looked at once, and told from the pods that are left", async () => {
    const server = await serve()
    run(server, "load-a", [exits(5, "no space left\n")])
    await until("failed", () => server.model.job("default", "load-a")?.status.failed)
    const { get, page } = await dashboard(server)
    const { lanes } = await page()
    await until("looked at", () => lanes.get("default/load-a")?.cause === "exit:5")
    expect(callsOf(server, "list", "pods").length).toBe(1)
    const seen = (await (await get("/failure?job=default/load-a&record=")).json()) as { lines: string[] }
    expect(seen.lines.join("\n")).toContain("| no space left")
  })

  test("a record that cannot be read hides no other, and is tried again", async () => {
    const server = await serve()
    const settings = { RESTART_RULES: "log:/never again/=never" }
    for (const name of ["load-a", "load-b"]) {
      const past = { startedAt: 0, failedAt: Date.now(), cause: "exit:3" as const, log: ["never again"] }
      putRecord(server.model, "default", name, past, stand(server, name).metadata.uid)
    }
    const name = /^load-a-failure/
    const cure = server.fault({ verb: "get", resource: "configmaps", name }, { status: 413 }, { times: 1e6 })
    const { lanes } = await hurriedPage(server, { settings })
    await until("the other", () => lanes.get("default/load-b")?.state === "given_up")
    expect(lanes.get("default/load-a")?.state).toBe("waiting")
    cure()
    await until("this one", () => lanes.get("default/load-a")?.state === "given_up")
  })

  test("while a look at a Job takes long, as where packets are dropped, no others pile up behind it", async () => {
    const server = await serve()
    for (const name of ["load-a", "load-b"]) stand(server, name)
    const { dashboard } = await hurriedPage(server)
    const held = Promise.withResolvers<void>()
    const looks: string[] = []
    dashboard.explain = (key) => {
      looks.push(key)
      return held.promise
    }
    const beats = () => callsOf(server, "get", "configmaps").length
    const from = beats()
    await until("ten beats", () => beats() > from + 10)
    held.resolve()
    const then = beats()
    await until("another beat", () => beats() > then + 1)
    expect(looks.length).toBeLessThan(10)
  })

  test("a Job in the middle of its restart stays on the page", async () => {
    const server = await serve()
    stand(server, "held", HELD)
    const operator = live(server, { RESTART_DELAY: "0" })
    const page = await (await dashboard(server)).page()
    await until("restarting", () => page.lanes.get("default/held")?.state === "restarting")
    operator.kill()
    await operator.done
  })

  test("a Job's panel tells the decision, every rule, and the settings; a record tells its log", async () => {
    const server = await serve()
    const job = stand(server, "load-a")
    const past = {
      startedAt: 0,
      failedAt: Date.now() - 5_000,
      cause: "exit:3" as const,
      log: ["token=hunter2", "the end"],
    }
    putRecord(server.model, "default", "load-a", past, job.metadata.uid)
    const { get, page } = await dashboard(server, { env: { RESTART_RULES: "oom=1m,exit:3=2h" } })
    const { lanes, messages } = await page()
    const lane = lanes.get("default/load-a")!
    expect(lane.decision).toMatch(/^to be restarted at \S+Z: rule exit:3=2h$/)
    expect(lane.rules).toEqual([
      { rule: "oom=1m", verdict: "does not match" },
      { rule: "exit:3=2h", verdict: "matches" },
    ])
    expect(messages[0]?.settings).toContain("RESTART_RULES=oom=1m, exit:3=2h")
    const { name } = lane.failures[0]!
    const evidence = await (await get(`/failure?job=default/load-a&record=${name}`)).json()
    expect(evidence).toMatchObject({ lines: expect.arrayContaining(["        | token=***", "        | the end"]) })
    expect((await get("/failure?job=default/load-a&record=none")).status).toBe(404)
  })

  test("control and bidi characters of a forged record arrive as visible text", async () => {
    const server = await serve()
    stand(server, "load-a")
    const data = {
      "failure.json": JSON.stringify({
        reason: hostile,
        pods: [
          { name: hostile, uid: "u", phase: hostile, containers: [{ name: hostile, message: hostile, ended: true }] },
        ],
        morePods: 0,
      }),
    }
    const annotations = { [`${PREFIX}summary`]: hostile, [`${PREFIX}decided`]: hostile, [`${PREFIX}cause`]: hostile }
    server.model.put({
      kind: "ConfigMap",
      metadata: { name: "forged", labels: { [RECORD]: "failure", [RECORD_JOB]: "load-a" }, annotations },
      data,
    })
    const { get } = await dashboard(server)
    const texts = [await (await get("/failure?job=default/load-a&record=forged")).text()]
    const events = (await get("/events")).body!.getReader()
    texts.push(new TextDecoder().decode((await events.read()).value))
    await events.cancel()
    for (const text of texts) {
      expect(text).toContain("<img src=x onerror=alert(1)>")
      expect(text).toContain("u{202e}")
      for (const sign of ["\u202e", "\u0007", "\u001b", "\\u202e", "\\u0007", "\\u001b"])
        expect(text).not.toContain(sign)
    }
  })

  test("an API server that is away is told in its words, and so is its return, with what has changed", async () => {
    const server = await serve()
    stand(server, "load-a")
    const page = await (await dashboard(server)).page()
    await server.stop()
    await until("an outage", () => page.problems["API server"])
    expect(page.lanes.has("default/load-a")).toBe(true)
    stand(server, "load-b")
    await server.start()
    await until("back", () => Object.keys(page.problems).length === 0)
    await until("what is new", () => page.lanes.has("default/load-b"))
  })

  test("a page that is opened is told everything, and the others nothing of it", async () => {
    const server = await serve()
    for (const name of ["load-a", "load-b"]) stand(server, name, { status: { active: 1 } })
    const { get, page } = await dashboard(server)
    const first = await page()
    await until("its first two reports", () => first.messages.length > 2)
    const from = first.messages.length
    const second = await follow((await get("/events")).body!)
    expect(second.messages[0]).toMatchObject({ areAll: true, lanes: { "default/load-a": {}, "default/load-b": {} } })
    fail(server, "load-a")
    await until("failed", () => second.lanes.get("default/load-a")?.state === "waiting")
    for (const { areAll, lanes } of first.messages.slice(from))
      expect([areAll, Object.keys(lanes).filter((job) => job !== "default/load-a")]).toEqual([false, []])
  })

  test("a page that reads no more is cut off, so that nothing piles up for it, and the others go on", async () => {
    const server = await serve()
    stand(server, "load-a", { status: { active: 1 } })
    const { dashboard, lanes } = await hurriedPage(server)
    const stalled = dashboard.events().getReader()
    for (let n = 0; n < 110; n++) {
      dashboard.changed.add("default/load-a")
      await until("sent", () => dashboard.changed.size === 0)
    }
    await expect(stalled.read()).rejects.toThrow("does not read")
    fail(server, "load-a")
    await until("failed", () => lanes.get("default/load-a")?.state === "waiting")
  }, 60_000)

  test("where no page is open nothing waits to be sent", async () => {
    const server = await serve()
    const { dashboard } = hurriedDashboard(server)
    await dashboard.start()
    stand(server, "load-a")
    await until("seen", () => dashboard.entries.has("default/load-a"))
    await until("nothing waits", () => dashboard.changed.size === 0)
  })

  test("an API server that hangs is an outage too", async () => {
    const server = await serve()
    const page = await hurriedPage(server)
    server.fault({ verb: "get", resource: "configmaps" }, { hang: true }, { times: 1 })
    await until("an outage", () => page.problems["API server"])
    await until("back", () => Object.keys(page.problems).length === 0)
  })

  test("an API server that hangs is told at once, also where the Events of an overdue restart are read", async () => {
    const server = await serve()
    stand(server, "load-a", { status: failedAgo(60_000) })
    server.fault({ resource: "events" }, { hang: true }, { times: 1e6 })
    server.fault({ verb: "get", resource: "configmaps" }, { hang: true }, { times: 1e6 })
    const page = await hurriedPage(server, { settings: { RESTART_DELAY: "0" } })
    const askedAt = performance.now()
    await until("an outage", () => page.problems["API server"])
    expect(performance.now() - askedAt).toBeLessThan(12_000)
  })

  test("what looks like a secret in an error's words is masked on the page too", async () => {
    const server = await serve()
    server.fault({ verb: "list", resource: "jobs" }, { status: 500, message: "bad token=hunter2" }, { times: 1e6 })
    const page = await hurriedPage(server)
    expect(page.problems["jobs in default"]).toContain("bad token=***")
  })

  test("records that may not be read are a problem, and no outage; the Jobs are shown", async () => {
    const server = await serve()
    stand(server, "load-a")
    server.addUser("reader", [{ apiGroups: ["batch"], resources: ["jobs"], verbs: ["get", "list", "watch"] }])
    server.addUser("nobody", [])
    server.fault({ verb: "get", resource: "configmaps" }, { status: 404 }, { times: 1 })
    const page = await (await dashboard(server, { user: "reader" })).page()
    expect(page.problems).toEqual({ "configmaps in default": expect.stringContaining("403") })
    expect(page.lanes.has("default/load-a")).toBe(true)
  })

  test("where watching is forbidden, changes come by polling", async () => {
    const server = await serve()
    stand(server, "load-a", { status: { active: 1 } })
    const verbs = ["get", "list"]
    server.addUser("poller", [
      { apiGroups: ["batch"], resources: ["jobs"], verbs },
      { apiGroups: [""], resources: ["configmaps", "pods"], verbs },
    ])
    const page = await hurriedPage(server, { user: "poller" })
    fail(server, "load-a")
    await until("polled", () => page.lanes.get("default/load-a")?.state === "waiting")
    await until("said", () => page.problems["jobs in default"]?.includes("403"))
    const from = page.messages.length
    const lists = callsOf(server, "list", "jobs").length
    await until("three more lists", () => callsOf(server, "list", "jobs").length > lists + 2)
    expect(page.messages.slice(from).filter(({ problems }) => !problems["jobs in default"])).toEqual([])
  })

  /** A page that shows a Job whose restart the cluster rejects. `otherStates`: what it was shown as since a message. */
  async function rejectedPage() {
    const server = await serve()
    stand(server, "load-a")
    server.fault({ verb: "create", resource: "jobs" }, { status: 403, message: "exceeded quota" }, { times: 1e6 })
    live(server, { RESTART_DELAY: "0" })
    const page = await hurriedPage(server, { settings: { RESTART_DELAY: "0" } })
    await until("rejected", () => page.lanes.get("default/load-a")?.state === "rejected")
    const otherStates = (from: number) => {
      const states = page.messages.slice(from).flatMap(({ lanes }) => lanes["default/load-a"]?.state ?? [])
      return states.filter((state) => state !== "rejected")
    }
    return { server, page, otherStates }
  }

  test("a restart that the cluster rejects is shown as rejected, with the cluster's words", async () => {
    const { page } = await rejectedPage()
    expect(page.lanes.get("default/load-a")?.why).toContain("exceeded quota")
  })

  test("a rejected restart stays rejected on the page while the API server does not answer", async () => {
    const { server, page, otherStates } = await rejectedPage()
    const from = page.messages.length
    const liftEvents = server.fault({ verb: "list", resource: "events" }, { drop: "before" }, { times: 1e6 })
    const lift = server.fault({ verb: "get", resource: "configmaps" }, { drop: "before" }, { times: 1e6 })
    await until("an outage", () => page.problems["API server"])
    const asked = callsOf(server, "get", "configmaps").length
    await until("two more looks", () => callsOf(server, "get", "configmaps").length > asked + 1)
    liftEvents()
    lift()
    await until("over", () => page.problems["API server"] === undefined)
    expect(otherStates(from)).toEqual([])
  })

  test("a rejected restart stays rejected on the page while Events alone cannot be read", async () => {
    const { server, page, otherStates } = await rejectedPage()
    const from = page.messages.length
    server.fault({ verb: "list", resource: "events" }, { status: 429, retryAfterSeconds: 1 }, { times: 1e6 })
    const asked = callsOf(server, "get", "configmaps").length
    await until("three more looks", () => callsOf(server, "get", "configmaps").length > asked + 2)
    expect(otherStates(from)).toEqual([])
  })

  test("settings that an operator writes meanwhile hold for every Job, without another list", async () => {
    const server = await serve()
    for (const name of ["load-a", "load-b"]) stand(server, name)
    let settings: Record<string, string> = {}
    const page = await hurriedPage(server, { read: () => settings })
    const from = server.calls.length
    for (const delay of ["3h", "2d"]) {
      settings = { RESTART_DELAY: delay }
      const why = `RESTART_DELAY ${delay}`
      await until(why, () => [...page.lanes.values()].every((lane) => lane.why === why))
      expect(page.messages.at(-1)?.settings).toContain(`RESTART_DELAY=${delay}`)
    }
    const others = server.calls.slice(from).filter(({ verb, resource }) => verb === "list" && resource !== "pods")
    expect(others).toEqual([])
  })

  test("wrong settings are no outage, and those that hold stay until they are mended", async () => {
    const server = await serve()
    let settings: Record<string, string> = { RESTART_DELAY: "soon" }
    const page = await hurriedPage(server, { read: () => settings })
    await until("said", () => page.problems.settings?.includes("RESTART_DELAY"))
    expect(Object.keys(page.problems)).toEqual(["settings"])
    expect(page.messages.at(-1)?.settings).toContain("RESTART_DELAY=1h")
    settings = {}
    await until("mended", () => Object.keys(page.problems).length === 0)
  })
})

describe("What it does", () => {
  test("restart brings a Job that was given up back, by the protocol, and says its new uid", async () => {
    const server = await serve()
    const job = stand(server, "load-a", { metadata: { annotations: { [`${PREFIX}max-restarts`]: "0" } } })
    const { page, post } = await dashboard(server)
    const { lanes } = await page()
    expect(lanes.get("default/load-a")?.state).toBe("given_up")
    const answer = await post("/action", { action: "restart", job: "default/load-a", uid: job.metadata.uid })
    await allBack(server, [job])
    const { uid } = current(server, job)!.metadata
    expect([answer.status, await answer.json()]).toEqual([200, { text: expect.stringContaining(`new uid ${uid}`) }])
    await until("shown", () => lanes.get("default/load-a")?.uid === uid)
    expect(deletions(server, "load-a").length).toBe(1)
  })

  test("pause and resume set and remove the annotation, for the very Job that was shown", async () => {
    const server = await serve()
    const job = stand(server, "load-a")
    const { page, post } = await dashboard(server)
    const { lanes } = await page()
    const act = (action: string) => post("/action", { action, job: "default/load-a", uid: job.metadata.uid })
    const paused = () => current(server, job)?.metadata.annotations?.[`${PREFIX}paused`]
    expect((await act("pause")).status).toBe(200)
    expect(paused()).toBe("true")
    await until("paused", () => lanes.get("default/load-a")?.isPaused)
    expect((await act("resume")).status).toBe(200)
    expect(paused()).toBeUndefined()
    await until("resumed", () => lanes.get("default/load-a")?.isPaused === false)
    const [patch] = callsOf(server, "patch")
    expect(patch?.body).toMatchObject({ metadata: { uid: job.metadata.uid, resourceVersion: expect.any(String) } })
  })

  /** A failed Job whose TTL removes it before it is due, and the intent from which it will come back. */
  function putTaken(server: Server, ttlSecondsAfterFinished = 5) {
    const job = stand(server, "taken", { spec: { ttlSecondsAfterFinished } }) as unknown as RealJob
    const additions = { annotations: { [`${PREFIX}restarted-from`]: job.metadata?.uid ?? "" }, memory: {} }
    server.model.put(intentFor(draftOf({ live: job, additions, dueAt: Date.now() + 3_600_000 })) as unknown as Job)
    return job.metadata?.uid
  }

  test("a Job that its TTL took, and which waits, can be restarted now, as by the command", async () => {
    const server = await serve()
    putTaken(server)
    person(server, "delete", "taken")
    await until("gone", () => !server.model.job("default", "taken"))
    const { lanes, dashboard } = await hurriedPage(server)
    const { state, uid, notRestartable } = lanes.get("default/taken")!
    expect([state, notRestartable]).toEqual(["waiting", undefined])
    const { text } = await dashboard.act({ action: "restart", job: "default/taken", uid })
    expect(text).toContain("is restarted")
  })

  test("an intent that the edit of its Job made void is no restart: the decision on the Job holds", async () => {
    const server = await serve()
    const uid = putTaken(server, 1_800)
    const { lanes, dashboard } = await hurriedPage(server)
    expect(lanes.get("default/taken")?.state).toBe("waiting")
    await dashboard.act({ action: "pause", job: "default/taken", uid })
    await until("paused", () => lanes.get("default/taken")?.isPaused)
    expect(lanes.get("default/taken")).toMatchObject({ state: "left_alone", why: expect.stringContaining("paused") })
  })

  const rejected: [string, string, (server: Server) => { job: string; uid: string }, RegExp][] = [
    ["a running Job", "restart", (server) => told(stand(server, "load-a", { status: { active: 1 } })), /it is running/],
    ["a Job that was replaced", "restart", (server) => ({ ...told(stand(server, "load-a")), uid: "old" }), /replaced/],
    ["a Job that was replaced", "pause", (server) => ({ ...told(stand(server, "load-a")), uid: "old" }), /replaced/],
    [
      "a Job, by an action that there is not",
      "explode",
      (server) => told(stand(server, "load-a")),
      /cannot be exploded/,
    ],
    ["a Job that is not there", "resume", () => ({ job: "default/none", uid: "" }), /default\/none cannot be resumed/],
    ["a name that is none", "pause", () => ({ job: "../../etc", uid: "" }), /etc" names no Job in default/],
    [
      "a Job of another namespace",
      "pause",
      () => ({ job: "kube-system/load-a", uid: "" }),
      /kube-system\/load-a" names no Job in default/,
    ],
  ]
  const told = ({
    metadata: { namespace, name, uid },
  }: {
    metadata: { namespace: string; name: string; uid: string }
  }) => ({
    job: `${namespace}/${name}`,
    uid,
  })
  test.each(rejected)("%s: %s is rejected, and nothing is written", async (_, action, wanted, words) => {
    const server = await serve()
    const body = wanted(server)
    const { post } = await dashboard(server)
    const answer = await post("/action", { action, ...body })
    expect([answer.status, await answer.json()]).toEqual([409, { error: expect.stringMatching(words) }])
    expect(server.calls.filter(({ verb }) => ["create", "patch", "delete"].includes(verb))).toEqual([])
  })

  test("an action that is no JSON, or no object, is rejected", async () => {
    const { origin, cookie } = await dashboard(await serve())
    for (const body of ["{", "null", "7"]) {
      const headers = { cookie, origin, "content-type": "application/json" }
      const answer = await fetch(`${origin}/action`, { method: "POST", headers, body })
      expect([body, answer.status, answer.headers.get("cache-control")]).toEqual([body, 409, "no-store"])
    }
  })

  test("a rejection of the API server is told in its words, and the Job stays", async () => {
    const server = await serve()
    const job = stand(server, "load-a")
    const { post } = await dashboard(server)
    server.fault({ verb: "patch" }, { status: 403, message: "admins may not pause" }, { times: 1 })
    server.fault({ verb: "create", resource: "jobs" }, { status: 403, message: "exceeded quota" }, { times: 9 })
    const act = async (action: string) =>
      (await (await post("/action", { action, job: "default/load-a", uid: job.metadata.uid })).json()) as {
        error: string
      }
    expect((await act("pause")).error).toContain("admins may not pause")
    expect((await act("restart")).error).toContain("exceeded quota")
    expect(current(server, job)?.metadata.uid).toBe(job.metadata.uid)
  })

  test("under DRY_RUN nothing is restarted", async () => {
    const server = await serve()
    const job = stand(server, "load-a")
    const { post } = await dashboard(server, { env: { DRY_RUN: "true" } })
    const answer = await post("/action", { action: "restart", job: "default/load-a", uid: job.metadata.uid })
    expect(await answer.json()).toEqual({ error: "DRY_RUN is set: nothing is restarted" })
    expect(deletions(server, "load-a")).toEqual([])
  })
})
