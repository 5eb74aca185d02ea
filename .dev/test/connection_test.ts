// Where the API client of operator.ts connects to, whom it trusts, as whom it asks, and what it makes of answers:
// against real HTTPS servers with throw-away CAs on 127.0.0.1. Clocks are turned by hand where a limit is long; the
// network is always the real one. An id in a name is a report, listed in .github/docs/reports.md. Streams:
// streams_test.ts; the program as a process: program_test.ts.

import { heapStats } from "bun:jsc"
import { describe, expect, jest, setSystemTime, test } from "bun:test"
import { existsSync, mkdirSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs"
import net, { type AddressInfo, type Socket } from "node:net"
import { join } from "node:path"
import tls from "node:tls"
import { ApiError, ConfigError, connect, findSource, type Keep, type Pod, viewPod } from "../../operator.ts"
import type { Certificate } from "../apiserver/http.ts"
import {
  ada,
  allAre,
  askAll,
  base64,
  bob,
  connected,
  connectProxy,
  DELETE,
  endings,
  endsWatches,
  errorOf,
  everything,
  file,
  flood,
  folder,
  foreign,
  type Handler,
  hang,
  identityOf,
  isAlive,
  job,
  kubeconfigOf,
  never,
  plugin,
  quiet,
  refuse,
  type Served,
  serve,
  sourceOf,
  status,
  tidyUp,
  trusted,
  until,
} from "./connection_kit.ts"

tidyUp()

describe("Where to connect", () => {
  const env = (more: object = {}) => ({ HOME: join(folder, "nobody"), ...more })
  const inCluster = async (host: string, port: string) => {
    const serviceAccount = mkdtempSync(join(folder, "sa-"))
    writeFileSync(join(serviceAccount, "token"), "t0ken\n")
    writeFileSync(join(serviceAccount, "ca.crt"), trusted.cert)
    return findSource({ KUBERNETES_SERVICE_HOST: host, KUBERNETES_SERVICE_PORT: port }, serviceAccount)
  }

  test("KUBECONFIG goes before the pod's ServiceAccount, and that before ~/.kube/config", async () => {
    const home = join(folder, "somebody")
    mkdirSync(join(home, ".kube"), { recursive: true })
    writeFileSync(join(home, ".kube/config"), JSON.stringify(kubeconfigOf("https://127.0.0.1:1")))
    writeFileSync(join(home, "token"), "t0ken")
    writeFileSync(join(home, "ca.crt"), trusted.cert)
    const pod = { HOME: home, KUBERNETES_SERVICE_HOST: "127.0.0.1", KUBERNETES_SERVICE_PORT: "1" }
    const [a, b] = [file(kubeconfigOf("https://127.0.0.1:2")), file("")]
    const from = async (more: object, account: string) => (await findSource({ ...pod, ...more }, account)).from
    expect(await from({ KUBECONFIG: ` ${a}:${b}\n` }, home)).toBe(`KUBECONFIG ${a}, ${b}`)
    expect(await from({ KUBECONFIG: "" }, home)).toBe("the pod's ServiceAccount")
    expect(await from({}, folder)).toBe(join(home, ".kube/config"))
  })

  test("E03 an IPv6 host gets brackets, once, and reaches its server", async () => {
    expect(connect(await inCluster("fd00:10::1", "443"), {}).address).toBe("https://[fd00:10::1]:443")
    expect(connect(await inCluster("[fd00:10::1]", "443"), {}).address).toBe("https://[fd00:10::1]:443")
    const server = await serve(quiet(), { host: "::1" })
    expect(await connect(await inCluster("::1", String(server.port)), {}).version(never)).toBe("v1.35.1")
    expect(server.calls[0]?.headers.authorization).toBe("Bearer t0ken")
  })

  test("E03 a missing host or port is named", async () => {
    for (const [host, port] of [
      ["fd00:10::1", ""],
      ["", "443"],
    ] as const)
      expect((await errorOf(inCluster(host, port))).message).toMatch(
        /KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT/,
      )
  })

  test("E08 of two kubeconfigs one may be missing, and each may hold a part", async () => {
    const server = await serve(quiet())
    const { users, ...rest } = kubeconfigOf(server.address, undefined, { token: "t0ken" })
    const cluster = connect(
      await findSource({ KUBECONFIG: `${join(folder, "missing")}:${file(rest)}:${file({ users })}` }),
    )
    expect(await cluster.version(never)).toBe("v1.35.1")
    expect(server.calls[0]?.headers.authorization).toBe("Bearer t0ken")
  })

  test("E13 a broken entry counts only where it is used, and then it is named", async () => {
    const config = kubeconfigOf("https://127.0.0.1:1")
    const broken = { ...config, clusters: [...config.clusters, { name: "bad", cluster: {} }] }
    expect(connect(await findSource({ KUBECONFIG: file(broken) })).address).toBe("https://127.0.0.1:1")
    const used = { ...broken, contexts: [{ name: "here", context: { cluster: "bad", user: "me" } }] }
    expect((await errorOf(findSource({ KUBECONFIG: file(used) }))).message).toMatch(/cluster bad: server is missing/)
  })

  test("paths in a kubeconfig are relative to it; its tokenFile goes before its token", async () => {
    const server = await serve(quiet())
    file(trusted.cert, "near-ca.crt")
    file("fresh\n", "near-token")
    const cluster = await connected(
      server,
      { "certificate-authority": "near-ca.crt" },
      { token: "stale", tokenFile: "near-token" },
    )
    expect(await cluster.version(never)).toBe("v1.35.1")
    expect(server.calls[0]?.headers.authorization).toBe("Bearer fresh")
  })

  const contradictions: [string, object, object, RegExp][] = [
    [
      "F03 (3) skip-verify beside a CA",
      { "insecure-skip-tls-verify": true, "certificate-authority-data": base64(trusted.cert) },
      {},
      /insecure-skip-tls-verify/,
    ],
    [
      "E05 a socks proxy",
      { "proxy-url": "socks5://127.0.0.1:1080" },
      {},
      /proxy-url must be a URL that begins with http/,
    ],
    [
      "E14 a client key without its certificate",
      {},
      { "client-key-data": base64(ada.key) },
      /needs client-(key|certificate) or client-/,
    ],
    [
      "E14 a client certificate without its key",
      {},
      { "client-certificate-data": base64(ada.cert) },
      /needs client-(key|certificate) or client-/,
    ],
    ["a server that is no URL", { server: "127.0.0.1:6443" }, {}, /server must be an https:.. URL/],
  ]
  test.each(contradictions)("%s is refused before anything is sent", async (_, cluster, user, message) => {
    const error = await errorOf(sourceOf("https://127.0.0.1:1", cluster, user))
    expect(error).toBeInstanceOf(ConfigError)
    expect(error.message).toMatch(message)
  })

  test("no configuration: the message names all places, and k3s'", async () => {
    expect((await errorOf(findSource(env(), folder))).message).toMatch(
      new RegExp(
        `KUBECONFIG is not set.*ServiceAccount in ${folder}.*${folder}/nobody/.kube/config.*/etc/rancher/k3s/k3s.yaml`,
      ),
    )
  })

  test("E05 the API server of the pod's own cluster is never behind a proxy of the environment", async () => {
    for (const host of ["127.0.0.1", "::1"]) {
      const [server, proxy] = [await serve(quiet(), { host }), await connectProxy()]
      Object.assign(process.env, { HTTPS_PROXY: proxy.address, NO_PROXY: "example.test", no_proxy: "example.test" })
      expect(await connect(await inCluster(host, String(server.port))).version(never)).toBe("v1.35.1")
      expect(proxy.asked).toEqual([])
    }
  })
})

describe("A proxy", () => {
  test("E05 proxy-url is used for every verb, whatever the environment says", async () => {
    const server = await serve(quiet(endsWatches), { identity: await identityOf(trusted, "10.9.9.9") })
    const proxy = await connectProxy()
    Object.assign(process.env, { HTTPS_PROXY: "http://127.0.0.1:1", NO_PROXY: "10.9.9.9", no_proxy: "*" })
    const cluster = { "certificate-authority-data": base64(trusted.cert), "proxy-url": proxy.address }
    const far = connect(await sourceOf(`https://10.9.9.9:${server.port}`, cluster))
    expect(await askAll(far, AbortSignal.timeout(5_000))).toEqual(allAre("done"))
    expect(new Set(proxy.asked)).toEqual(new Set([`10.9.9.9:${server.port}`]))
  })

  test("H09 E05 a proxy of the environment is used for other machines, and never for this one", async () => {
    const identity = await identityOf(trusted, "10.9.9.9", "127.demo.test", "127.0.0.1", "localhost", "::1")
    const [server, proxy] = [await serve(quiet(), { identity }), await connectProxy()]
    for (const name of ["HTTPS_PROXY", "https_proxy"]) {
      const env = { [name]: proxy.address.replace(name === "HTTPS_PROXY" ? "" : "http://", "") }
      const of = async (host: string) => connect(await sourceOf(`https://${host}:${server.port}`), env)
      for (const host of ["10.9.9.9", "127.demo.test", "127.0.0.1", "localhost"])
        expect(await (await of(host)).version(never)).toBe("v1.35.1")
      expect(proxy.asked.splice(0)).toEqual([`10.9.9.9:${server.port}`, `127.demo.test:${server.port}`])
    }
  })

  test("H09 ALL_PROXY is not read, as by kubectl", async () => {
    Object.assign(process.env, { ALL_PROXY: "http://127.0.0.1:1", all_proxy: "http://127.0.0.1:1" })
    expect(await (await connected(await serve(quiet()))).version(never)).toBe("v1.35.1")
  })

  test("a proxy of the environment that is no http proxy is rejected by the name of the variable", async () => {
    const source = await sourceOf("https://10.9.9.9:6443")
    expect(() => connect(source, { https_proxy: "socks5://s3cr3t@127.0.0.1:1080" })).toThrow(
      "https_proxy must name a proxy with http:// or https://, others are not supported",
    )
  })
})

describe("Whom to trust", () => {
  test("F01 a server that the cluster's CA has signed is trusted by every verb, any other by none", async () => {
    expect(await askAll(await connected(await serve(quiet(endsWatches))))).toEqual(allAre("done"))
    const stranger = await serve(quiet(), { identity: await identityOf(foreign, "127.0.0.1") })
    expect(await askAll(await connected(stranger))).toEqual(allAre(expect.stringMatching(/certificate/)))
    const elsewhere = await serve(quiet(), { identity: await identityOf(trusted, "api.demo.test") })
    expect(await askAll(await connected(elsewhere))).toEqual(
      allAre(
        "the server's certificate is for other names: if it is the right server, set tls-server-name to one of them",
      ),
    )
  })

  test("F19 a server of an unknown CA that asks for a client certificate gets not one byte of HTTP", async () => {
    let bytes = 0
    const identity = await identityOf(foreign, "127.0.0.1")
    const server = tls.createServer({ ...identity, requestCert: true, rejectUnauthorized: false }, (socket) => {
      socket.on("error", () => {}).on("data", (data: Buffer) => (bytes += data.length))
    })
    await new Promise<void>((done) => server.listen(0, "127.0.0.1", done))
    endings.push(() => server.close())
    const user = { token: "t0ken", "client-certificate-data": base64(ada.cert), "client-key-data": base64(ada.key) }
    const cluster = connect(
      await sourceOf(`https://127.0.0.1:${(server.address() as AddressInfo).port}`, undefined, user),
    )
    expect(await askAll(cluster)).toEqual(allAre(expect.stringMatching(/certificate/)))
    expect(bytes).toBe(0)
  })

  test("F03 (1) a self-signed server is refused, (2) unless skip-verify says otherwise, and only there", async () => {
    const server = await serve(quiet(endsWatches), { identity: await identityOf(foreign, "127.0.0.1") })
    expect((await errorOf((await connected(server, {})).version(never))).message).toMatch(/certificate/)
    const careless = await connected(server, { "insecure-skip-tls-verify": true })
    expect([careless.isVerified, await askAll(careless)]).toEqual([false, allAre("done")])
    expect((await errorOf((await connected(server, {})).version(never))).message).toMatch(/certificate/)
  })

  test("E07 tls-server-name is what the certificate is checked against, by every verb", async () => {
    const cluster = { "certificate-authority-data": base64(trusted.cert), "tls-server-name": "api.demo.test" }
    const named = await serve(quiet(endsWatches), { identity: await identityOf(trusted, "api.demo.test") })
    expect(await askAll(await connected(named, cluster))).toEqual(allAre("done"))
    const unnamed = await serve(quiet(endsWatches))
    // Leaves a connection that could be taken again.
    expect(await (await connected(unnamed)).version(never)).toBe("v1.35.1")
    expect(await askAll(await connected(unnamed, cluster))).toEqual(
      allAre(
        "the server's certificate is for other names: if it is the right server, set tls-server-name to one of them",
      ),
    )
  })

  test("E12 all certificates of a CA file count, in any order, with comments and CRLF", async () => {
    const server = await serve(quiet())
    for (const pair of [
      [foreign.cert, trusted.cert],
      [trusted.cert, foreign.cert],
    ]) {
      const bundle = pair
        .map((pem) => `# a root\n${pem}`)
        .join("\n")
        .replace(/\r?\n/g, "\r\n")
      expect(await (await connected(server, { "certificate-authority": file(bundle) })).version(never)).toBe("v1.35.1")
    }
  })

  test("E12 a CA that is replaced while running is used, from a file and in the kubeconfig itself", async () => {
    const server = await serve(quiet())
    const ca = file(foreign.cert)
    const kubeconfig = file(kubeconfigOf(server.address, { "certificate-authority-data": base64(foreign.cert) }))
    const clusters = [
      await connected(server, { "certificate-authority": ca }),
      connect(await findSource({ KUBECONFIG: kubeconfig })),
    ]
    for (const cluster of clusters) expect((await errorOf(cluster.version(never))).message).toMatch(/certificate/)
    writeFileSync(ca, trusted.cert)
    writeFileSync(kubeconfig, JSON.stringify(kubeconfigOf(server.address)))
    for (const cluster of clusters) expect(await cluster.version(never)).toBe("v1.35.1")
    setSystemTime(Date.now() + 11_000)
    writeFileSync(ca, foreign.cert)
    for (const socket of server.sockets) socket.destroy()
    expect((await errorOf(clusters[0]!.version(never))).message).toMatch(/certificate/)
  })
})

describe("Who we are", () => {
  const only =
    (...tokens: string[]): Handler =>
    ({ headers }, response) =>
      tokens.includes(String(headers.authorization)) ? undefined : refuse(response, 401, "Unauthorized")
  const bearers = ({ calls }: Served) => calls.map(({ headers }) => headers.authorization?.replace("Bearer ", ""))

  test("E01 a token that has changed on disk is read after one 401, by all verbs, and in time without", async () => {
    let accepted = "Bearer T1"
    const server = await serve(quiet((call, response) => only(accepted)(call, response) ?? endsWatches(call, response)))
    const tokenFile = file("T1\n")
    const cluster = await connected(server, undefined, { tokenFile })
    expect(await askAll(cluster)).toEqual(allAre("done"))
    writeFileSync(tokenFile, "T2\n")
    accepted = "Bearer T2"
    server.calls.length = 0
    expect(await cluster.version(never)).toBe("v1.35.1")
    expect(bearers(server)).toEqual(["T1", "T2"])
    expect(await askAll(cluster)).toEqual(allAre("done"))
    writeFileSync(tokenFile, "T3\n")
    setSystemTime(Date.now() + 70_000)
    server.calls.length = 0
    accepted = "Bearer T3"
    expect(await askAll(cluster)).toEqual(allAre("done"))
    expect(new Set(bearers(server))).toEqual(new Set(["T3"]))
  })

  test("E01 a 401 that stays is tried once again, then it is an error", async () => {
    const server = await serve((_, response) => refuse(response, 401, "Unauthorized"))
    expect(await errorOf((await connected(server)).version(never))).toMatchObject({
      name: "ApiError",
      status: 401,
      reason: "Unauthorized",
    })
    expect(server.calls.length).toBe(2)
  })

  test("E10 a plugin's credential is used until it expires, and renewed before", async () => {
    const server = await serve(quiet(only("Bearer P1", "Bearer P2")))
    const inAMinute = new Date(Date.now() + 60_000).toISOString()
    const { user, runs } = plugin({ token: "P1", expirationTimestamp: inAMinute }, { token: "P2" })
    const cluster = await connected(server, undefined, user)
    for (const afterMs of [0, 11_000, 20_000]) {
      setSystemTime(Date.now() + afterMs)
      await cluster.version(never)
    }
    expect(bearers(server)).toEqual(["P1", "P1", "P1"])
    setSystemTime(Date.parse(inAMinute) - 500)
    await cluster.version(never)
    expect([bearers(server).at(-1), runs()]).toEqual(["P2", 2])
  })

  test("E10 a plugin's credential without expiry is renewed by one run after a 401, for all calls", async () => {
    const server = await serve(
      quiet((call, response) => only("Bearer P2")(call, response) ?? endsWatches(call, response)),
    )
    const { user, runs } = plugin({ token: "P1" }, { token: "P2" })
    const cluster = await connected(server, undefined, user)
    expect(await askAll(cluster)).toEqual(allAre("done"))
    setSystemTime(Date.now() + 3_600_000)
    expect(await askAll(cluster)).toEqual(allAre("done"))
    expect(runs()).toBe(2)
  })

  test("E10 J12 a plugin that asks and waits is given up and ended, and its question stands in the error", async () => {
    const pid = join(folder, "pid")
    const hanging = {
      exec: {
        command: "sh",
        args: ["-c", `printf 'User name: ' >&2; echo $$ > ${pid}.new; mv ${pid}.new ${pid}; sleep 1000`],
      },
    }
    const cluster = await connected(await serve(quiet()), undefined, hanging)
    jest.useFakeTimers()
    const error = errorOf(cluster.version(never))
    await until(() => existsSync(pid))
    // Its question is in the pipe by now; these turns of the event loop read it.
    for (let turn = 0; turn < 20; turn++) await new Promise(setImmediate)
    jest.advanceTimersByTime(25_001)
    expect((await error).message).toBe("the credential plugin sh failed: we got no answer in 25s; it said: User name:")
    jest.useRealTimers()
    await until(() => !isAlive(readFileSync(pid, "utf8").trim()))
  })

  test("E10 a plugin that ends but leaves its output open is given up", async () => {
    const pids = join(folder, "pids")
    const script = `setsid sleep 1000 & echo $$ $! > ${pids}.new; mv ${pids}.new ${pids}`
    const cluster = await connected(await serve(quiet()), undefined, { exec: { command: "sh", args: ["-c", script] } })
    jest.useFakeTimers()
    const error = errorOf(cluster.version(never))
    await until(() => existsSync(pids))
    const [shell, sleeper] = readFileSync(pids, "utf8").split(" ").map(Number) as [number, number]
    endings.push(() => process.kill(sleeper))
    await until(() => !isAlive(String(shell)))
    jest.advanceTimersByTime(25_001)
    expect((await error).message).toBe("the credential plugin sh failed: we got no answer in 25s")
    jest.useRealTimers()
  })

  test("E10 a plugin that fails is named, with what it said; it is tried again at the next call", async () => {
    const server = await serve(quiet())
    const flag = join(folder, "logged-in")
    const script = `[ -e ${flag} ] || { echo 'log in first' >&2; exit 7; }; echo '{"status":{"token":"P1"}}'`
    const cluster = await connected(server, undefined, { exec: { command: "sh", args: ["-c", script] } })
    expect((await errorOf(cluster.version(never))).message).toMatch(/credential plugin sh.*7.*log in first/)
    writeFileSync(flag, "")
    expect(await cluster.version(never)).toBe("v1.35.1")
    for (const [command, args, message] of [
      ["no-such-plugin", [], /no-such-plugin/],
      ["echo", ["hello"], /credential plugin echo/],
      ["echo", ["{}"], /credential plugin echo/],
      ["echo", [JSON.stringify({ status: { clientKeyData: ada.key } })], /credential plugin echo.*certificate/],
    ] as const)
      expect(
        (await errorOf((await connected(server, undefined, { exec: { command, args } })).version(never))).message,
      ).toMatch(message)
  })

  test("E10 a plugin is told what is asked of it, and lives beside its kubeconfig", async () => {
    const server = await serve(quiet())
    writeFileSync(
      join(folder, "near-plugin"),
      `#!/bin/sh\necho "$KUBERNETES_EXEC_INFO" > ${folder}/info\necho '{"status":{"token":"'$MINE'"}}'\n`,
      { mode: 0o755 },
    )
    const exec = {
      apiVersion: "client.authentication.k8s.io/v1",
      command: "./near-plugin",
      env: [{ name: "MINE", value: "P1" }],
    }
    await (await connected(server, undefined, { exec })).version(never)
    expect(bearers(server)).toEqual(["P1"])
    expect(JSON.parse(readFileSync(join(folder, "info"), "utf8"))).toMatchObject({
      apiVersion: exec.apiVersion,
      kind: "ExecCredential",
      spec: { interactive: false },
    })
  })

  test("E14 a client certificate from data, files or a plugin is shown by every verb", async () => {
    const users = [
      { "client-certificate-data": base64(ada.cert), "client-key-data": base64(ada.key) },
      { "client-certificate": file(ada.cert), "client-key": file(ada.key) },
      plugin({ clientCertificateData: ada.cert, clientKeyData: ada.key }).user,
    ]
    for (const user of users) {
      const server = await serve(quiet(endsWatches))
      expect(await askAll(await connected(server, undefined, user))).toEqual(allAre("done"))
      expect([...new Set(server.calls.map(({ subject }) => subject))]).toEqual(["ada"])
    }
  })

  test("E14 a client certificate that was renewed on disk is shown from then on", async () => {
    const server = await serve(quiet())
    const user = { "client-certificate": file(ada.cert), "client-key": file(ada.key) }
    const cluster = await connected(server, undefined, user)
    await cluster.version(never)
    writeFileSync(user["client-certificate"], bob.cert)
    writeFileSync(user["client-key"], bob.key)
    setSystemTime(Date.now() + 11_000)
    await cluster.version(never)
    expect(server.calls.map(({ subject }) => subject)).toEqual(["ada", "bob"])
  })

  test("F15 one process can be ada, then bob, then nobody, to the same server", async () => {
    const server = await serve(quiet())
    const as = ({ cert, key }: Certificate) => ({
      "client-certificate-data": base64(cert),
      "client-key-data": base64(key),
    })
    for (const user of [as(ada), as(bob), {}]) await (await connected(server, undefined, user)).version(never)
    expect(server.calls.map(({ subject }) => subject)).toEqual(["ada", "bob", undefined])
  })
})

describe("What it answers", () => {
  /** A server that takes connections and does nothing with them but `first`. */
  async function deaf(first: (socket: Socket) => unknown = hang) {
    const sockets: Socket[] = []
    const server = net.createServer((socket) => {
      sockets.push(socket.on("error", () => {}))
      first(socket)
    })
    await new Promise<void>((done) => server.listen(0, "127.0.0.1", done))
    endings.push(() => {
      for (const socket of sockets) socket.destroy()
      server.close()
    })
    return { address: `https://127.0.0.1:${(server.address() as AddressInfo).port}`, sockets }
  }

  test("a call without an answer is given up after 30 s, a log after 10 s, and its socket is closed", async () => {
    const [silent, half] = [await serve(hang), await serve((_, response) => void response.write('{"metadata":'))]
    const mute = await deaf()
    for (const [server, begun] of [
      [silent, silent.calls],
      [half, half.calls],
      [mute, mute.sockets],
    ] as const) {
      const cluster = connect(await sourceOf(server.address))
      await cluster.version(AbortSignal.timeout(1)).catch(() => {}) // prepares what takes a moment
      const before = begun.length
      jest.useFakeTimers()
      const asked = askAll(cluster)
      await until(() => begun.length >= before + everything.length)
      jest.advanceTimersByTime(10_001)
      jest.advanceTimersByTime(50_001)
      const answers = await asked
      jest.useRealTimers()
      expect(answers).toEqual({
        ...allAre(expect.stringMatching(/no answer in 30s|no data received/)),
        readLog: expect.stringMatching(/no answer in 10s|no data received/),
      })
      await until(() =>
        server.sockets instanceof Set ? server.sockets.size === 0 : server.sockets.every(({ destroyed }) => destroyed),
      )
    }
  })

  test("H31 connections that died in silence cost one time-out in all, not one each", async () => {
    let isDead = false
    let fresh = 0
    const server = await serve(quiet((call) => (isDead && call.socket < fresh ? new Promise(() => {}) : undefined)))
    const cluster = await connected(server)
    await Promise.all(Array.from({ length: 6 }, () => cluster.version(never)))
    expect(server.sockets.size).toBeGreaterThan(1)
    isDead = true
    fresh = server.opened()
    jest.useFakeTimers()
    const first = errorOf(cluster.version(never))
    const before = server.calls.length
    await until(() => server.calls.length > before)
    jest.advanceTimersByTime(30_001)
    expect((await first).message).toBe("GET /version got no answer in 30s")
    jest.useRealTimers()
    for (let n = 0; n < 6; n++) expect(await cluster.version(never)).toBe("v1.35.1")
  })

  test("F06 an address that swallows packets holds nothing up: stopping and limits work while connecting", async () => {
    const script = 'const s = require("net").createServer().listen(0, "127.0.0.1", () => console.log(s.address().port))'
    const child = Bun.spawn([process.execPath, "-e", script], { stdout: "pipe" })
    endings.push(() => child.kill("SIGKILL"))
    const port = Number(new TextDecoder().decode((await child.stdout.getReader().read()).value))
    child.kill("SIGSTOP")
    let accepted = 0
    const fill = Array.from({ length: 700 }, () =>
      net.connect(port, "127.0.0.1", () => accepted++).on("error", () => {}),
    )
    endings.push(() => fill.forEach((socket) => void socket.destroy()))
    await until(() => accepted > 500)
    expect(await askAll(connect(await sourceOf(`https://127.0.0.1:${port}`)), AbortSignal.timeout(100))).toEqual(
      allAre("The operation timed out."),
    )
  })

  test("every verb asks what it should, as whom it should", async () => {
    const server = await serve(quiet(endsWatches))
    await askAll(await connected(server))
    const asked = server.calls.map(({ line, query, body }) =>
      `${line}${query.size > 0 ? `?${query}` : ""} ${body}`
        .trim()
        .replace(/timeoutSeconds=2[4-9]\d/, "timeoutSeconds=SOME"),
    )
    const jobs = "/apis/batch/v1/namespaces/demo/jobs"
    const review = {
      apiVersion: "authorization.k8s.io/v1",
      kind: "SelfSubjectRulesReview",
      spec: { namespace: "demo" },
    }
    expect(asked.sort()).toEqual(
      [
        "GET /version",
        `POST /apis/authorization.k8s.io/v1/selfsubjectrulesreviews ${JSON.stringify(review)}`,
        `GET ${jobs}?limit=500`,
        `GET ${jobs}/load-a`,
        `POST ${jobs} ${JSON.stringify(job())}`,
        `PATCH ${jobs}/load-a {"metadata":{"uid":"U1","resourceVersion":"1","annotations":{"note":null}}}`,
        'POST /api/v1/namespaces/demo/events {"reason":"Failed"}',
        `DELETE ${jobs}/load-a {"propagationPolicy":"Foreground","preconditions":{"uid":"U1","resourceVersion":"1"}}`,
        "GET /api/v1/namespaces/demo/pods?limit=500&fieldSelector=metadata.name%3Dload-a-1",
        "GET /api/v1/namespaces/demo/pods?limit=500&labelSelector=app%3Dload",
        "GET /api/v1/namespaces/demo/pods/q1/log?container=worker&tailLines=20",
        `GET ${jobs}?watch=true&allowWatchBookmarks=true&timeoutSeconds=SOME&resourceVersion=1`,
      ].sort(),
    )
    expect(new Set(server.calls.map(({ headers }) => headers.authorization))).toEqual(new Set(["Bearer t0ken"]))
    expect(server.calls.find(({ line }) => line.startsWith("PATCH"))?.headers["content-type"]).toBe(
      "application/merge-patch+json",
    )
  })

  test.each(["<html>Sign in, password=hunter2</html>", "", "[]", '"x"', "null"])(
    "an answer 200 that is no JSON object is one of a proxy, for example: %j",
    async (body) => {
      const server = await serve(
        (_, response) => void response.writeHead(200, { "content-type": "text/html" }).end(body),
      )
      const { readLog: _, watch: __, ...answers } = await askAll(await connected(server))
      for (const answer of Object.values(answers))
        expect(answer).toBe("the answer (200, text/html) is no JSON object: is it of a proxy, or of another server?")
    },
  )

  test("a redirect is an error: the token goes nowhere else", async () => {
    const thief = await serve(quiet())
    const server = await serve(
      (_, response) => void response.writeHead(307, { location: `${thief.address}/version` }).end(),
    )
    const text = `307: it redirects to ${thief.address}`
    expect(await askAll(await connected(server))).toEqual(allAre(text))
    expect(thief.calls).toEqual([])
  })

  test("half an answer is an error, and the next call is answered", async () => {
    let halves = 1
    const server = await serve(
      quiet((_, response) => {
        if (halves-- <= 0) return
        response.writeHead(200, { "content-length": "100" }).write('{"gitVersion":"v1.')
        setTimeout(() => response.socket?.destroy(), 20)
      }),
    )
    expect(await errorOf((await connected(server)).version(never))).not.toBeInstanceOf(ApiError)
    expect(await (await connected(server)).version(never)).toBe("v1.35.1")
  })

  test("an error is known by code and reason, and says how long to wait", async () => {
    let [code, headers, body]: [number, Record<string, string>, string] = [0, {}, ""]
    const cluster = await connected(await serve((_, response) => void response.writeHead(code, headers).end(body)))
    const get = () => errorOf(cluster.createJob("demo", job(), {}, never))
    const cases: [number, Record<string, string>, string | object, object][] = [
      [
        429,
        { "retry-after": "7" },
        status(429, "TooManyRequests", { retryAfterSeconds: 3 }),
        { reason: "TooManyRequests", retryAfterMs: 7_000 },
      ],
      [
        503,
        {},
        status(503, "ServiceUnavailable", { retryAfterSeconds: 3 }),
        { reason: "ServiceUnavailable", retryAfterMs: 3_000 },
      ],
      [
        502,
        { "retry-after": "Sun, 01 Mar 2026 12:00:09 GMT", date: "Sun, 01 Mar 2026 12:00:00 GMT" },
        "<html>Bad Gateway</html>",
        { reason: "", message: expect.stringContaining("Bad Gateway"), retryAfterMs: 9_000 },
      ],
      [
        503,
        { "retry-after": "Sun, 01 Mar 2026 11:00:00 GMT", date: "Sun, 01 Mar 2026 12:00:00 GMT" },
        "over",
        { retryAfterMs: 0 },
      ],
      [503, { "retry-after": "soon" }, "no wait", { retryAfterMs: 0 }],
      [404, {}, "404 page not found", { reason: "" }],
      [404, {}, status(404, "NotFound"), { reason: "NotFound" }],
      [409, {}, status(409, "AlreadyExists"), { reason: "AlreadyExists" }],
      [
        403,
        {},
        status(403, "Forbidden", { causes: [{ reason: "NamespaceTerminating" }] }),
        { causes: ["NamespaceTerminating"] },
      ],
      [500, {}, '{"kind":"Sta', { reason: "" }],
      [500, {}, "", { reason: "" }],
      [500, {}, "null", { reason: "" }],
    ]
    for (const [status, header, answer, right] of cases) {
      ;[code, headers, body] = [status, header, typeof answer === "string" ? answer : JSON.stringify(answer)]
      expect(await get()).toMatchObject({ name: "ApiError", status, ...right })
    }
    ;[code, body] = [404, JSON.stringify(status(404, "NotFound"))]
    expect(await cluster.getJob("demo", "load-a", never)).toBe(undefined)
  })

  test("D02 a list is read page by page, and an expired continue token starts it again, once", async () => {
    const requested: (string | null)[] = []
    let expiries = 0
    const server = await serve(({ query }, response) => {
      requested.push(query.get("continue"))
      if (query.get("continue") === "p2" && expiries-- > 0) return refuse(response, 410, "Expired")
      const [page, next] = query.get("continue") === "p2" ? ["b", undefined] : ["a", "p2"]
      return { metadata: { resourceVersion: "7", continue: next }, items: [{ metadata: { name: page } }] }
    })
    const cluster = await connected(server)
    const list = () => cluster.listJobs("demo", "", ({ metadata }) => metadata?.name, never)
    const whole = { items: ["a", "b"], resourceVersion: "7" }
    expect(await list()).toEqual(whole)
    expiries = 1
    expect(await list()).toEqual(whole)
    expect(requested).toEqual([null, "p2", null, "p2", null, "p2"])
    expiries = 2
    expect(await errorOf(list())).toMatchObject({ status: 410, reason: "Expired" })
    expect(requested.slice(6)).toEqual([null, "p2", null, "p2"])
  })

  test("a list that kine answers with 504 ResourceVersionTooLarge starts again, once", async () => {
    let refusals = 1
    const server = await serve((_, response) => {
      if (refusals-- <= 0) return { metadata: { resourceVersion: "7" }, items: [] }
      const causes = [{ reason: "ResourceVersionTooLarge", message: "Too large resource version" }]
      return void response.writeHead(504).end(JSON.stringify(status(504, "Timeout", { causes })))
    })
    const cluster = await connected(server)
    const list = () => cluster.listJobs("demo", "", (job) => job, never)
    expect(await list()).toEqual({ items: [], resourceVersion: "7" })
    refusals = 2
    expect(await errorOf(list())).toMatchObject({ status: 504, causes: ["ResourceVersionTooLarge"] })
    expect(server.calls).toHaveLength(4)
  })

  test("a 410 that answers the first page of a list is an error, after a second try", async () => {
    const server = await serve((_, response) => refuse(response, 410, "Expired"))
    const list = (await connected(server)).listPods("demo", "", (pod) => pod, never)
    expect(await errorOf(list)).toMatchObject({ status: 410, reason: "Expired" })
    expect(server.calls).toHaveLength(2)
  })

  /**
   * A server with so many pods of about 5 KB, in pages of the size that is asked for; `onPage` hears of each request.
   */
  const servePods = (count: number, onPage: () => unknown) =>
    serve(({ query }) => {
      onPage()
      const from = Number(query.get("continue") ?? 0)
      const to = Math.min(count, from + Number(query.get("limit")))
      const items = Array.from({ length: to - from }, (_, i) => ({
        metadata: {
          name: `pod-${from + i}`,
          uid: `uid-${from + i}`,
          annotations: { note: `${from + i} `.repeat(900) },
        },
        spec: { containers: [{ name: "main", image: "busybox" }] },
        status: { phase: "Succeeded", containerStatuses: [{ name: "main", restartCount: 0 }] },
      }))
      return { metadata: { resourceVersion: "7", continue: to < count ? String(to) : undefined }, items }
    })

  test("a list drops what is not kept, and reduces each page before it requests the next", async () => {
    let seen = 0
    const seenAtRequest: number[] = []
    const server = await servePods(1_700, () => seenAtRequest.push(seen))
    const keepEven = ({ metadata }: Pod) => (seen++ % 2 === 0 ? metadata?.uid : undefined)
    const { items } = await (await connected(server)).listPods("demo", "", keepEven, never)
    expect(seenAtRequest).toEqual([0, 500, 1_000, 1_500])
    expect(items).toEqual(Array.from({ length: 850 }, (_, i) => `uid-${2 * i}`))
  })

  test("H33 a list of 9,000 pods holds their views, not the pods", async () => {
    /** Bytes of live objects that were added between the first and the last page. */
    const heldBy = async <T>(keep: Keep<Pod, T>) => {
      const held: number[] = []
      const server = await servePods(9_000, () => {
        Bun.gc(true)
        held.push(heapStats().heapSize)
      })
      const { items } = await (await connected(server)).listPods("demo", "", keep, never)
      expect([items.length, held.length]).toEqual([9_000, 18])
      return held.at(-1)! - held[0]!
    }
    const whole = await heldBy((pod) => pod)
    const views = await heldBy(viewPod)
    expect(whole).toBeGreaterThan(9_000 * 3_000)
    expect(views).toBeLessThan(whole / 4)
  })

  test("the server's clock is read from its Date header", async () => {
    let [ahead, slow] = [0, false]
    const server = await serve(
      quiet(async (_, response) => {
        response.setHeader("date", new Date(Date.now() + ahead).toUTCString())
        if (slow) setSystemTime(Date.now() + 10_000)
      }),
    )
    const cluster = await connected(server)
    expect(cluster.skewMs()).toBe(0)
    for (ahead of [3_600_000, -3_600_000, 0]) {
      await cluster.version(never)
      expect(Math.abs(cluster.skewMs() - ahead)).toBeLessThan(1_100)
    }
    // Too slow to tell of less than it took.
    ;[ahead, slow] = [3_000, true]
    await cluster.version(never)
    expect(Math.abs(cluster.skewMs())).toBeLessThan(1_100)
  })

  test("F09 answers that nobody needs leave neither sockets nor memory behind", async () => {
    const filler = "x".repeat(2_048)
    const codes = [429, 404, 409]
    const server = await serve((_, response) => void response.writeHead(codes[server.calls.length % 3]!).end(filler))
    const cluster = await connected(server)
    const many = async (n: number) => {
      for (let i = 0; i < n; i++)
        await Promise.all([1, 2, 3, 4].map(() => errorOf(cluster.createJob("demo", job(), {}, never))))
    }
    await many(50)
    Bun.gc(true)
    const before = process.memoryUsage().rss
    await many(250)
    Bun.gc(true)
    expect(process.memoryUsage().rss - before).toBeLessThan(64 << 20)
    await until(() => server.sockets.size <= 8)
  })

  test.each([
    [200, 192 << 20, /JSON/],
    [500, 16 << 20, /^500: /],
  ])("F09 an endless %i is read up to a measure, and its socket is closed", async (code, most, message) => {
    let sent = 0
    const piece = "x".repeat(1 << 16)
    const next = () => {
      sent += piece.length
      return piece
    }
    const server = await serve((_, response) => flood(response.writeHead(code), next))
    expect((await errorOf((await connected(server)).deleteJob("demo", "load-a", DELETE, never))).message).toMatch(
      message,
    )
    await until(() => server.sockets.size === 0)
    expect(sent).toBeLessThan(most)
  })
})
