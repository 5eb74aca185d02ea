// Kubeconfigs against real servers: the table of kubeconfigs.ts, what happens when they change, and that no error shows
// a secret. An id in a name is a report, listed in .github/docs/reports.md.
import { describe, expect, setSystemTime, test } from "bun:test"
import { rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { $ } from "bun"
import selfsigned from "selfsigned"
import { ConfigError, connect, findSource } from "../../operator.ts"
import {
  base64,
  connected,
  errorOf,
  file,
  folder,
  type Handler,
  kubeconfigOf,
  never,
  quiet,
  refuse,
  type Served,
  serve,
  tidyUp,
  trusted,
} from "./connection_kit.ts"
import { cases, startPlace } from "./kubeconfigs.ts"

tidyUp()

describe("A kubeconfig with", () => {
  test.each(cases.map((one) => [one.name, one] as const))("%s", async (_, { make, right }) => {
    const { place, seen } = await startPlace()
    const KUBECONFIG = make(place)
    const outcome = await findSource({ KUBECONFIG, HOME: place.folder }, place.folder)
      .then((source) => connect(source, {}).version(never))
      .then(
        () => seen,
        (error: Error) => error.message,
      )
    if (right instanceof RegExp) expect([outcome, seen]).toEqual([expect.stringMatching(right), []])
    else expect(outcome).toEqual([right])
  })
})

test.each<[string, object, object, string[]]>([
  [
    "of fields and of rules",
    { "proxy-url": "socks5://127.0.0.1:1", bogus: 1 },
    { password: "x", other: 1 },
    ["bogus", "other", "proxy-url must", "password needs username"],
  ],
  [
    "in PEM",
    { "certificate-authority-data": base64("no") },
    { "client-certificate-data": base64("no"), "client-key-data": base64("no") },
    ["certificate-authority-data", "client-certificate-data", "client-key-data"],
  ],
])("All mistakes of a kubeconfig are named at once: %s", async (_, cluster, user, named) => {
  const KUBECONFIG = file(kubeconfigOf("https://127.0.0.1:1", cluster, user))
  const { message } = await errorOf(findSource({ KUBECONFIG }))
  for (const name of named) expect(message).toContain(name)
})

test("A mistake in a large kubeconfig is found by line and column", async () => {
  const user = (n: number) =>
    ["- name: user", n, "\n  user:\n    exec:\n      args: [\n        a,\n        b]\n"].join("")
  const users = Array.from({ length: 5_000 }, (_, n) => user(n))
  users[4_000] = "- name: a: b\n"
  const KUBECONFIG = file(`users:\n${users.join("")}`)
  const { message } = await errorOf(findSource({ KUBECONFIG }))
  expect(message).toMatch(/as YAML: .* \(line 24002, column 10\)$/)
})

describe("A CA", () => {
  const sign = async (cn: string, ca: { cert: string; key: string } | undefined, extensions: object[]) => {
    const options = { keyType: "ec", algorithm: "sha256", ...(ca && { ca }), extensions } as const
    const { cert, private: key } = await selfsigned.generate([{ name: "commonName", value: cn }], options as never)
    return { cert, key }
  }
  const authority = [
    { name: "basicConstraints", cA: true, critical: true },
    { name: "keyUsage", keyCertSign: true, digitalSignature: true, critical: true },
  ]
  const names = [{ name: "subjectAltName", altNames: [{ type: 7, ip: "127.0.0.1" }] }]

  test("H01 that is an intermediate one, alone, is trusted, and so is a server's own certificate", async () => {
    const root = await sign("root", undefined, authority)
    const middle = await sign("middle", root, authority)
    const leaf = await sign("server", middle, names)
    for (const cert of [leaf.cert, `${leaf.cert}\n${middle.cert}`]) {
      const server = await serve(quiet(), { identity: { ...leaf, cert } })
      const version = async (ca: string) =>
        (await connected(server, { "certificate-authority-data": base64(ca) })).version(never)
      expect(await version(middle.cert)).toBe("v1.35.1")
      expect(await version(leaf.cert)).toBe("v1.35.1")
      expect((await errorOf(version(trusted.cert))).message).toMatch(/certificate/)
      expect(server.calls.length).toBe(2)
    }
  })
})

/** Answers 401 to all but this token. */
const onlyFor =
  (token: () => string): Handler =>
  ({ headers }, response) =>
    headers.authorization === `Bearer ${token()}` ? undefined : refuse(response, 401, "Unauthorized")
const bearers = ({ calls }: Served) => calls.map(({ headers }) => headers.authorization)

describe("A kubeconfig that changes while the program runs", () => {
  const both = (current: string, home: string, prod: string, token = "HOME-1") => ({
    "current-context": current,
    clusters: [home, prod].map((server, i) => ({
      name: `c${i}`,
      cluster: { server, "certificate-authority-data": base64(trusted.cert) },
    })),
    contexts: ["home", "prod"].map((name, i) => ({ name, context: { cluster: `c${i}`, user: name } })),
    users: [
      { name: "home", user: { token } },
      { name: "prod", user: { token: "PROD" } },
    ],
  })

  test("H04 stays on the context of its start: home's renewed token goes to home, prod's nowhere", async () => {
    let accepted = "HOME-1"
    const [home, prod] = [await serve(quiet(onlyFor(() => accepted))), await serve(quiet())]
    const path = file(both("home", home.address, prod.address))
    const cluster = connect(await findSource({ KUBECONFIG: path }))
    await cluster.version(never)
    writeFileSync(path, JSON.stringify(both("prod", home.address, prod.address, "HOME-2")))
    accepted = "HOME-2"
    expect(await cluster.version(never)).toBe("v1.35.1")
    expect(bearers(home)).toEqual(["Bearer HOME-1", "Bearer HOME-1", "Bearer HOME-2"])
    expect(prod.calls).toEqual([])
  })

  test("H04 asks nobody while its context leads to another server, and goes on when it leads back", async () => {
    let accepted = "HOME-1"
    const [home, prod] = [await serve(quiet(onlyFor(() => accepted))), await serve(quiet())]
    const path = file(both("home", home.address, prod.address))
    const cluster = connect(await findSource({ KUBECONFIG: path }))
    await cluster.version(never)
    accepted = "HOME-2"
    writeFileSync(path, JSON.stringify(both("home", prod.address, home.address, "HOME-2")))
    for (let n = 0; n < 3; n++) expect(await errorOf(cluster.version(never))).toBeInstanceOf(ConfigError)
    expect((await errorOf(cluster.version(never))).message).toBe(
      `context home now leads to ${prod.address}, at start to ${home.address}: nothing is sent to either; ` +
        "restart the program to use the new server",
    )
    expect([home.calls.length, prod.calls.length]).toEqual([2, 0])
    writeFileSync(path, JSON.stringify(both("home", home.address, prod.address, "HOME-2")))
    expect(await cluster.version(never)).toBe("v1.35.1")
  })

  test.each([
    ["is gone", (path: string) => rmSync(path)],
    ["is empty for a moment", (path: string) => writeFileSync(path, "")],
  ])("H07 keeps what it had when the file %s", async (_, spoil) => {
    let isRefused = false
    const server = await serve(
      quiet((call, response) =>
        isRefused ? refuse(response, 401, "Unauthorized") : onlyFor(() => "t0ken")(call, response),
      ),
    )
    const path = file(kubeconfigOf(server.address, undefined, { token: "t0ken" }))
    const cluster = connect(await findSource({ KUBECONFIG: path }))
    spoil(path)
    isRefused = true
    expect(await errorOf(cluster.version(never))).toMatchObject({ status: 401 })
    isRefused = false
    expect(await cluster.version(never)).toBe("v1.35.1")
  })

  test("an error in the file is said in place of the 401, and the mended file is used", async () => {
    let accepted = "T1"
    const server = await serve(quiet(onlyFor(() => accepted)))
    const path = file(kubeconfigOf(server.address, undefined, { token: "T1" }))
    const cluster = connect(await findSource({ KUBECONFIG: path }))
    await cluster.version(never)
    accepted = "T2"
    writeFileSync(path, JSON.stringify(kubeconfigOf(server.address, undefined, { tokn: "T2" })))
    expect((await errorOf(cluster.version(never))).message).toMatch(/user me: the field tokn is not supported/)
    writeFileSync(path, JSON.stringify(kubeconfigOf(server.address, undefined, { token: "T2" })))
    expect(await cluster.version(never)).toBe("v1.35.1")
  })

  test("J10 a tokenFile that is mended is read again at once", async () => {
    const server = await serve(quiet(onlyFor(() => "t0ken")))
    const tokenFile = file("")
    const cluster = await connected(server, undefined, { tokenFile })
    expect((await errorOf(cluster.version(never))).message).toBe(`tokenFile: ${tokenFile} is empty`)
    writeFileSync(tokenFile, "\ufefft0ken")
    expect(await cluster.version(never)).toBe("v1.35.1")
    expect(server.calls.length).toBe(1)
  })
})

describe("A file that can be read only once", () => {
  test("H07 a FIFO is read once, and kept after a 401", async () => {
    let isRefused = false
    const server = await serve(quiet((_, response) => (isRefused ? refuse(response, 401, "Unauthorized") : undefined)))
    const path = join(folder, "fifo")
    await $`mkfifo ${path}`
    const writing = Bun.spawn([
      "sh",
      "-c",
      `cat "$0" > ${path}`,
      file(kubeconfigOf(server.address, undefined, { token: "t0ken" })),
    ])
    const cluster = connect(await findSource({ KUBECONFIG: path }))
    await writing.exited
    expect(await cluster.version(never)).toBe("v1.35.1")
    isRefused = true
    expect(await errorOf(cluster.version(never))).toMatchObject({ status: 401 })
    isRefused = false
    expect(await cluster.version(never)).toBe("v1.35.1")
    expect(new Set(bearers(server))).toEqual(new Set(["Bearer t0ken"]))
  })

  test("H07 a FIFO that nobody writes to is waited for until a stop", async () => {
    const path = join(folder, "silent")
    await $`mkfifo ${path}`
    const stop = new AbortController()
    const error = errorOf(findSource({ KUBECONFIG: path }, folder, undefined, stop.signal))
    stop.abort(new Error("stopped"))
    expect((await error).message).toBe("stopped")
    await Bun.spawn(["sh", "-c", `echo > ${path}`]).exited // lets the reader go
  })
})

describe("The clock", () => {
  test("J09 a wrong one is named beside a 401, on either side", async () => {
    let ahead = 0
    const server = await serve((_, response) =>
      refuse(response, 401, "Unauthorized", { date: new Date(Date.now() + ahead).toUTCString() }),
    )
    const said = async () => (await errorOf((await connected(server)).version(never))).message
    for (ahead of [1_200_000, -1_200_000])
      expect(await said()).toMatch(
        new RegExp(`this machine's clock is (20m|19m59s|20m1s) ${ahead > 0 ? "behind" : "ahead of"} the server's`),
      )
    ahead = 0
    expect(await said()).not.toMatch(/clock/)
  })

  test("a plugin that takes more than 10 s is not run a second time beside itself", async () => {
    const { address } = await serve(quiet())
    const runs = file("")
    const script = `echo run >> ${runs}; sleep 1; printf '%s' '{"kind":"ExecCredential","status":{"token":"t0ken"}}'`
    const user = { exec: { interactiveMode: "Never", command: "sh", args: ["-c", script] } }
    const authority = { "certificate-authority-data": base64(trusted.cert) }
    const KUBECONFIG = file(kubeconfigOf(address, authority, user))
    const cluster = connect(await findSource({ KUBECONFIG }), {})
    const first = cluster.version(never)
    await Bun.sleep(300)
    setSystemTime(new Date(Date.now() + 11_000))
    await Promise.all([first, cluster.version(never)])
    expect(await Bun.file(runs).text()).toBe("run\n")
  })

  test("J09 what this machine takes for the time is named beside a certificate that is not valid now", async () => {
    const cluster = await connected(await serve(quiet()))
    setSystemTime(new Date("2031-01-01T00:00:00Z"))
    const { message } = await errorOf(cluster.version(never))
    // The time that TLS checks is the system's own: the certificate is valid, or its error names the clock.
    expect(message).toMatch(/it went well|this machine's clock says 2031/)
  })
})

describe("Secrets", () => {
  test("H34 a start is refused while Bun would print each request", async () => {
    const env = { KUBECONFIG: file(kubeconfigOf("https://127.0.0.1:1")) }
    for (const BUN_CONFIG_VERBOSE_FETCH of ["curl", "1", "true"])
      expect((await errorOf(findSource({ ...env, BUN_CONFIG_VERBOSE_FETCH }))).message).toMatch(
        /BUN_CONFIG_VERBOSE_FETCH is set/,
      )
    for (const BUN_CONFIG_VERBOSE_FETCH of ["", "0", "false"]) await findSource({ ...env, BUN_CONFIG_VERBOSE_FETCH })
  })

  test("J12 what a plugin said stands in the error, without its arguments", async () => {
    const secret = "Zx9-Qw8_Er7"
    const args = ["-c", 'echo "$0 $1 and $MINE: log in first" >&2; exit 1', `--secret=${secret}`, secret]
    const exec = { command: "sh", args, env: [{ name: "MINE", value: `${secret}!` }] }
    const { message } = await errorOf((await connected(await serve(quiet()), undefined, { exec })).version(never))
    expect(message).toBe("the credential plugin sh failed: exit code 1; it said: *** *** and ***!: log in first")
  })
})
