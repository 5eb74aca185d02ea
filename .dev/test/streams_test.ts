// What chapter 5 of operator.ts reads as a stream, logs and watches, and how the loop of chapter 7 lives through bad weather: against
// real HTTPS servers that misbehave. The clock of the loop is moved at once, the network is real. An id in a name is a report listed in
// operator_test.ts.
import { describe, expect, test } from "bun:test"
import type { ServerResponse } from "node:http"
import net from "node:net"
import { type Cluster, gatherEvidence, Operator, readSettings, viewJob, viewPod, type World } from "../../operator.ts"
import {
  type Call,
  connected,
  errorOf,
  event,
  failed,
  flood,
  type Handler,
  hang,
  job,
  never,
  quiet,
  refuse,
  type Served,
  serve,
  status,
  tidyUp,
  until,
  watched,
} from "./connection_kit.ts"

tidyUp()

describe("Logs", () => {
  const read = (server: Served, lines = 20, previous = false) =>
    connected(server).readLog("demo", "q1", "worker", { lines, previous }, never)
  const podOf = (name: string, main: object, containers = ["worker", "mesh"]) =>
    viewPod({
      metadata: {
        name,
        namespace: "demo",
        uid: name,
        ownerReferences: [{ kind: "Job", uid: "U1", controller: true } as never],
      },
      status: {
        phase: "Failed",
        initContainerStatuses: [{ name: "fetch", state: { terminated: { exitCode: 0 } } } as never],
        containerStatuses: containers.map((container) => ({ name: container, ...main }) as never),
      },
    })
  const ended = { state: { terminated: { exitCode: 1, startedAt: null, finishedAt: null } } }

  test("C01 each container's log is asked for by its name, C14 the previous run's only where asked", async () => {
    const server = await serve(({ query }, response) =>
      query.has("container") ? "x\n" : refuse(response, 400, "BadRequest"),
    )
    const { world } = worldOf(connected(server))
    const evidence = await gatherEvidence(world, viewJob(failed() as never), [podOf("q1", ended)])
    expect(server.calls.map(({ query }) => [query.get("container"), query.get("previous")]).sort()).toEqual([
      ["fetch", null],
      ["mesh", null],
      ["worker", null],
    ])
    expect([...evidence.logs.values()].map(({ lines }) => lines)).toEqual([["x"], ["x"], ["x"]])
    await read(server, 20, true)
    expect(server.calls.at(-1)?.query.get("previous")).toBe("true")
  })

  test.each([400, 403, 404, 410, 429, 500, 503])(
    "C03 C11 %i for a log is a note beside the logs of the others, asked once",
    async (code) => {
      const server = await serve(({ line }, response) =>
        line.includes("/q1/") ? "q1's words\n" : refuse(response, code, "Reason"),
      )
      const { world } = worldOf(connected(server))
      const evidence = await gatherEvidence(world, viewJob(failed() as never), [
        podOf("q1", ended, ["worker"]),
        podOf("q2", ended, ["worker"]),
      ])
      expect(evidence.logs.get("q1/worker")?.lines).toEqual(["q1's words"])
      expect(evidence.logs.get("q2/worker")).toMatchObject({
        lines: [],
        note: expect.stringContaining(`log not available: ${code}`),
      })
      expect(
        server.calls.filter(({ line, query }) => line.includes("/q2/") && query.get("container") === "worker").length,
      ).toBe(1)
    },
  )

  const bodies: [string, (n: number) => string][] = [
    ["an endless body without a line end", () => "x".repeat(4_096)],
    ["five million lines", (n) => (n < 5_000 ? `${`line ${n}\n`.repeat(1_000)}` : "")],
    ["lines far above limitBytes", (n) => `${n} ${"y".repeat(100_000)}\n`],
  ]
  test.each(bodies)("C05 %s costs neither memory nor time, and is said to be cut", async (_, piece) => {
    const server = await serve((_, response) => flood(response, piece))
    Bun.gc(true)
    const before = process.memoryUsage().rss
    const { lines, note } = await read(server)
    expect(note).toBe("log too long to read whole, cut")
    expect(lines.length).toBeLessThanOrEqual(20)
    expect(Math.max(...lines.map(({ length }) => length))).toBeLessThan(1_100)
    await until(() => server.sockets.size === 0)
    expect(process.memoryUsage().rss - before).toBeLessThan(96 << 20)
  })

  const sentence = "unable to retrieve container logs for containerd://abc"
  const ten = Array.from({ length: 10 }, (_, n) => (n === 2 ? sentence : `line ${n}`))
  const hundreds = Array.from({ length: 500 }, (_, n) => (n === 199 ? "the error" : `line ${n + 1}`))
  const texts: [string, string, number, object][] = [
    [
      "C06 only the kubelet's sentence: no log",
      sentence,
      20,
      { lines: [], note: "log not available, the container is removed" },
    ],
    ["C06 its sentence among others: a log", `${ten.join("\n")}\n`, 20, { lines: ten }],
    ["C08 nothing: empty, no error", "", 20, { lines: [], note: "log empty, it may have been rotated" }],
    ["C08 the last 3 lines", "a\nb\nc\n", 20, { lines: ["a", "b", "c"] }],
    [
      "C10 a tail that is long enough has the error",
      hundreds.slice(-400).join("\n"),
      400,
      { lines: expect.arrayContaining(["the error"]), note: "last 400 lines" },
    ],
  ]
  test.each(texts)("%s", async (_, body, lines, right) => {
    const server = await serve(
      (_, response) => void response.writeHead(200, { "content-type": "text/plain" }).end(body),
    )
    expect(await read(server, lines)).toEqual(right as never)
    expect(server.calls[0]?.query.get("tailLines")).toBe(String(lines))
  })
})

describe("A watch", () => {
  const streaming = (...parts: (string | Uint8Array)[]) =>
    serve(async (_, response) => {
      for (const part of parts) {
        response.write(part)
        await Bun.sleep(5)
      }
      response.end()
    })

  test("events come whole, however they are cut on the way; what is no whole line is left to the next watch", async () => {
    const bytes = Buffer.from(event("ADDED", job("2", { name: "straße-☂" })) + event("MODIFIED", job("3")))
    const cut = bytes.indexOf("☂") + 1
    const server = await streaming(
      bytes.subarray(0, cut),
      bytes.subarray(cut, cut + 3),
      bytes.subarray(cut + 3),
      "\n",
      '{"type":"DEL',
    )
    expect((await watched(connected(server))).map(({ type, object }) => [type, object.metadata?.name])).toEqual([
      ["ADDED", "straße-☂"],
      ["MODIFIED", "load-a"],
    ])
  })

  test("D05 bookmarks and unknown types are handed on as they are", async () => {
    const skeleton = {
      kind: "Job",
      apiVersion: "batch/v1",
      metadata: { resourceVersion: "900" },
      spec: { template: { metadata: {}, spec: { containers: null } } },
      status: {},
    }
    const server = await streaming(event("BOOKMARK", skeleton), event("SOMETHINGNEW", {}))
    expect((await watched(connected(server))).map(({ type }) => type)).toEqual(["BOOKMARK", "SOMETHINGNEW"])
  })

  const broken: [string, string[], object][] = [
    [
      "D01 an ERROR event",
      [event("ERROR", status(410, "Expired"))],
      { name: "ApiError", status: 410, reason: "Expired" },
    ],
    [
      "D12 an ERROR event that says when to come back",
      [event("ERROR", status(500, "", { retryAfterSeconds: 4 }))],
      { status: 500, retryAfterMs: 4_000 },
    ],
    ["an ERROR event without a Status", ['{"type":"ERROR"}\n'], { message: expect.stringContaining("500") }],
    ["a broken line", ["{{\n"], { name: "SyntaxError" }],
    ["a line that is no event", ["null\n"], {}],
  ]
  test.each(broken)("%s is an error, and the socket is closed", async (_, parts, right) => {
    const server = await serve((_, response) => void response.write(parts.join("")))
    expect(await errorOf(watched(connected(server)))).toMatchObject(right)
    await until(() => server.sockets.size === 0)
  })

  test("D04 silence is an error, though the socket is open, and counts from the last byte", async () => {
    const server = await serve((_, response) => {
      response.flushHeaders()
      for (const ms of [300, 600, 900]) setTimeout(() => response.write(event("ADDED", job())), ms)
    })
    const begunAt = performance.now()
    expect((await errorOf(watched(connected(server), never, 800))).message).toBe("no word for 800ms")
    expect(performance.now() - begunAt).toBeGreaterThan(1_500)
    await until(() => server.sockets.size === 0)
  })

  test("a line without end is given up", async () => {
    const server = await serve((_, response) => flood(response, () => "x".repeat(65_536)))
    expect((await errorOf(watched(connected(server)))).message).toBe("the watch sent an event without end")
    await until(() => server.sockets.size === 0)
  })

  test("F07 watches that we end leave neither sockets nor memory behind", async () => {
    const line = event("ADDED", job("2", { annotations: { note: "x".repeat(65_536) } }))
    const server = await serve((_, response) => void response.write(line))
    const cluster = connected(server)
    const cycles = async (n: number) => {
      for (let i = 0; i < n; i++)
        for await (const _ of cluster.watch("demo", "jobs", { resourceVersion: "1", silenceMs: 60_000 }, never)) break
    }
    await cycles(50)
    Bun.gc(true)
    const before = process.memoryUsage().rss
    await cycles(200)
    Bun.gc(true)
    expect(process.memoryUsage().rss - before).toBeLessThan(32 << 20)
    await until(() => server.sockets.size === 0)
  })

  test("stopping ends a watch at once, without an error", async () => {
    const [server, stop] = [
      await serve((_, response) => void response.write(event("ADDED", job()))),
      new AbortController(),
    ]
    const seen: string[] = []
    for await (const { type } of connected(server).watch(
      "demo",
      "jobs",
      { resourceVersion: "1", silenceMs: 60_000 },
      stop.signal,
    )) {
      seen.push(type)
      setTimeout(() => stop.abort(), 5)
    }
    expect(seen).toEqual(["ADDED"])
    await until(() => server.sockets.size === 0)
  })
})

/** A world with the real network and a clock that a pause moves at once; `onPause` is told of each. */
function worldOf(cluster: Cluster, settings: object = {}, onPause: (n: number) => unknown = hang) {
  const { config } = readSettings({ NAMESPACE: "demo", JOB_NAMES: "load-a", DRY_RUN: "yes", ...settings })
  const [stop, pauses, said]: [AbortController, number[], string[]] = [new AbortController(), [], []]
  let now = Date.now()
  const clock: World["clock"] = {
    now: () => now,
    async sleep(ms, ...signals) {
      // The turn of what is due waits for news; all else is a pause after trouble.
      if (signals.length > 1)
        return new Promise((done) =>
          signals.forEach((signal) => void (signal.aborted ? done() : signal.addEventListener("abort", () => done()))),
        )
      now += ms
      await onPause(pauses.push(ms))
    },
  }
  const say: World["say"] = (level, text, { lines = [] } = {}) => void said.push(`${level} ${text}`, ...lines)
  const world: World = { cluster, clock, random: () => 0.5, say, config, stop: stop.signal, kill: stop.signal }
  const run = async (enough: () => unknown) => {
    const running = new Operator(world).run()
    await until(enough, 10_000)
    stop.abort()
    await running
    return said.filter((text) => /^(warning|error|info)/.test(text))
  }
  return { world, pauses, said, run, passedMs: () => now - Date.now() }
}

describe("The loop in bad weather", () => {
  const isWatch = ({ line, query }: Call) => line.endsWith("/jobs") && query.has("watch")
  const isList = ({ line, query }: Call) => line === "GET /apis/batch/v1/namespaces/demo/jobs" && !query.has("watch")
  const listed = (resourceVersion: string, ...items: object[]) => ({ metadata: { resourceVersion }, items })
  const steps = ({ calls }: Served) =>
    calls
      .filter((call) => isWatch(call) || isList(call))
      .map((call) => (isWatch(call) ? `watch ${call.query.get("resourceVersion")}` : "list"))
  /** Answers each watch of Jobs by the next of these, the last one again and again. */
  const watches = (list: Handler, ...answers: ((response: ServerResponse) => unknown)[]) => {
    let n = 0
    return quiet((call, response) => {
      if (isList(call)) return list(call, response)
      if (isWatch(call)) return answers[Math.min(n++, answers.length - 1)]?.(response)
    })
  }
  const open = (response: ServerResponse) => void response.flushHeaders()
  const saying =
    (...events: string[]) =>
    (response: ServerResponse) =>
      void response.write(events.join(""))

  const expired: [string, (response: ServerResponse) => unknown][] = [
    ["D01 a 410 in a stream", () => event("ERROR", status(410, "Expired"))],
    ["D02 a 410 as the answer", (response) => refuse(response, 410, "Gone")],
  ]
  test.each(expired)("%s leads to a fresh list, whose failures are found", async (_, gone) => {
    let lists = 0
    const server = await serve(
      watches(() => (lists++ === 0 ? listed("100", job()) : listed("200", failed("150"))), gone, open),
    )
    const { run, said } = worldOf(connected(server))
    await run(() => said.some((text) => text.includes("would be restarted")) && steps(server).length === 4)
    expect(steps(server)).toEqual(["list", "watch 100", "list", "watch 200"])
    expect(said.filter((text) => text.includes("failed at")).length).toBe(1)
  })

  test("D02 an expired continue token begins the list anew", async () => {
    let pages = 0
    const server = await serve(
      watches(({ query }, response) => {
        if (query.has("continue") && pages++ === 0) return refuse(response, 410, "Expired")
        return query.has("continue")
          ? listed("9", failed())
          : { ...listed("9"), metadata: { resourceVersion: "9", continue: "p2" } }
      }, open),
    )
    const { run, said } = worldOf(connected(server))
    await run(() => said.some((text) => text.includes("would be restarted")))
    expect(server.calls.filter(isList).map(({ query }) => query.get("continue"))).toEqual([null, "p2", null, "p2"])
  })

  test("D04 a dead stream is given up after twice CHECK_INTERVAL, and the loop goes on", async () => {
    const server = await serve(watches(() => listed("100", job()), saying(event("ADDED", job("101"))), open))
    const { world, run, said } = worldOf(connected(server))
    world.config.checkIntervalMs = 50
    await run(() => steps(server).length >= 4)
    expect(steps(server).slice(0, 4)).toEqual(["list", "watch 100", "list", "watch 100"])
    expect(said.join("\n")).toContain("no word for 100ms")
  })

  test("D05 a bookmark moves the version and nothing else, an unknown type does nothing", async () => {
    const skeleton = {
      kind: "Job",
      metadata: { resourceVersion: "900" },
      spec: { template: { spec: { containers: null } } },
      status: {},
    }
    const ending = (response: ServerResponse) => response.end(event("BOOKMARK", skeleton) + event("SOMETHINGNEW", {}))
    const server = await serve(watches(() => listed("100", job()), ending, open))
    const { world, run } = worldOf(connected(server))
    let now = Date.now()
    world.clock.now = () => (now += 2_000) // so that the watch did not end at once
    expect(await run(() => steps(server).length === 3)).toEqual([])
    expect(steps(server)).toEqual(["list", "watch 100", "watch 900"])
  })

  test("D07 D12 each refused watch is followed by a longer pause, never shorter than asked; then all goes on", async () => {
    const busy = (response: ServerResponse) =>
      void response
        .writeHead(429, { "retry-after": "1" })
        .end(JSON.stringify(status(429, "TooManyRequests", { retryAfterSeconds: 1 })))
    const server = await serve(
      watches(() => listed("100", job()), busy, busy, busy, busy, busy, saying(event("MODIFIED", failed("101")))),
    )
    const { run, said, pauses } = worldOf(connected(server))
    await run(() => said.some((text) => text.includes("would be restarted")))
    expect(pauses.length).toBe(5)
    expect(Math.min(...pauses)).toBeGreaterThan(1_000)
    expect(pauses).toEqual(pauses.toSorted((a, b) => a - b))
    expect(said.filter((text) => text.includes("429")).length).toBe(1)
  })

  const forever: [string, Handler][] = [
    [
      "D07 429 on every watch",
      (call, response) =>
        isWatch(call) ? refuse(response, 429, "TooManyRequests", { "retry-after": "1" }) : undefined,
    ],
    [
      "D12 an ERROR event on every watch",
      (call) => (isWatch(call) ? event("ERROR", status(500, "InternalError")) : undefined),
    ],
    ["a watch that ends at once", (call) => (isWatch(call) ? "" : undefined)],
    ["E01 a 401 to everything", (_, response) => refuse(response, 401, "Unauthorized")],
    ["a broken list", (call) => (isList(call) ? "{" : undefined)],
    ["a list that is none", (call) => (isList(call) ? "null" : undefined)],
  ]
  test.each(forever)("%s, for an hour, is asked ever more rarely and survived", async (_, handler) => {
    const server = await serve(quiet(handler))
    const { run, pauses, said, passedMs } = worldOf(connected(server))
    await run(() => passedMs() > 3_600_000)
    expect(pauses.length).toBeLessThan(200)
    expect(server.calls.length).toBeLessThan(5 * pauses.length)
    expect(said.length).toBeLessThan(6)
  })

  test("D09 a failure that is shown three times is one failure", async () => {
    const again = [failed("101"), failed("101"), failed("102")].map((object) => event("ADDED", object))
    const server = await serve(
      watches(
        () => listed("100"),
        saying(...again, event("ADDED", job("103", { name: "last" })), event("BOOKMARK", job("104"))),
      ),
    )
    const { run, said } = worldOf(connected(server), { JOB_SELECTOR: "!nothing", JOB_NAMES: "load-a,last" })
    await run(() => said.some((text) => text.includes("would be restarted")))
    expect(said.filter((text) => text.includes("failed at")).length).toBe(1)
    expect(said.filter((text) => text.includes("would be restarted")).length).toBe(1)
  })

  test("D11 an API server that is refused, breaks TLS, says 503 and returns with lower versions: every loop goes on", async () => {
    const before = await serve(quiet((call) => (isList(call) ? listed("5000", job("4999")) : undefined)))
    const after: Handler = (call, response) => {
      if (pauses.length < 12) return refuse(response, 503, "ServiceUnavailable")
      if (isList(call)) return listed("7", failed("5"))
    }
    const mess = net.createServer((socket) => socket.on("error", () => {}).end("this is not TLS\n"))
    let returned: Served | undefined
    const { run, pauses, said } = worldOf(connected(before), {}, async (n) => {
      if (n === 4) await new Promise<void>((done) => mess.listen(before.port, "127.0.0.1", done))
      if (n === 8) await new Promise((done) => mess.close(done))
      if (n === 8) returned = await serve(quiet(after), { port: before.port })
    })
    const running = run(
      () =>
        said.some((text) => text.includes("would be restarted")) &&
        returned!.calls.filter(({ query }) => query.has("watch")).length > 1,
    )
    await until(() => before.calls.filter(({ query }) => query.has("watch")).length === 2)
    await before.stop()
    await running
    expect(
      returned!.calls
        .filter(({ query }) => query.has("watch"))
        .map(({ line, query }) => `${line} ${query.get("resourceVersion")}`)
        .sort(),
    ).toEqual(["GET /api/v1/namespaces/demo/pods 1", "GET /apis/batch/v1/namespaces/demo/jobs 7"])
  })
})
