// Kubeconfigs, beside the real kubectl and over time: the table of test/kubeconfigs.ts is compared with kubectl, which
// gets the same files, and an operator runs on while its context is switched and its token is renewed.
import { readFile, writeFile } from "node:fs/promises"
import type { ServerResponse } from "node:http"
import { connect, findSource } from "../../operator.ts"
import { base64, type Call, serve, trusted } from "../test/https_server.ts"
import { type Case, cases, startPlace } from "../test/kubeconfigs.ts"
import { apiServer, failingJob, group, need, seconds } from "./kit.ts"
import { kubectlProgram } from "./programs.ts"

const VERDICTS = ["same", "rejected by name", "different", "cannot", "unlike kubectl on purpose"] as const
type Verdict = (typeof VERDICTS)[number]

/** Sends one call with kubectl and one with the operator's client, and compares what the server saw. */
async function compare({ make, right, unlike }: Case, kubectl: string): Promise<Verdict> {
  const { place, seen } = await startPlace()
  const env = { PATH: process.env.PATH ?? "", HOME: place.folder, KUBECONFIG: make(place) }
  await Bun.spawn([kubectl, "get", "--raw", "/version"], { env, stdout: "ignore", stderr: "ignore" }).exited
  const theirs = seen.splice(0)
  const error = await findSource(env, place.folder)
    .then((source) => connect(source, {}).version(AbortSignal.timeout(20_000)))
    .then(() => "", String)
  if (Bun.deepEquals(theirs, seen)) return "same"
  if (unlike) return "unlike kubectl on purpose"
  if (!error) return "different"
  return right instanceof RegExp && right.test(error) ? "rejected by name" : "cannot"
}

export const kubeconfigGroup = () =>
  group("kubeconfigs", (_, check) =>
    check("no kubeconfig leads to other credentials than with kubectl, or fails without a reason", async () => {
      const kubectl = kubectlProgram
      const names: Record<Verdict, string[]> = {
        same: [],
        "rejected by name": [],
        different: [],
        cannot: [],
        "unlike kubectl on purpose": [],
      }
      for (const one of cases)
        names[await compare(one, kubectl)].push(one.unlike ? `${one.name}: ${one.unlike}` : one.name)
      for (const verdict of VERDICTS.slice(1))
        if (names[verdict].length > 0) console.log(`          ${verdict}: ${names[verdict].join("; ")}`)
      const counts = VERDICTS.map((verdict) => `${names[verdict].length} ${verdict}`).join(", ")
      need(names.different.length + names.cannot.length === 0, counts)
      return counts
    }),
  )

const RUN_MS = 90_000
const SWITCH_MS = 30_000

/** A server that takes one token after the other, and passes what has the right one on to the API server. */
async function gate(realToken: string) {
  const tokens = { accepted: "Bearer HOME-1", seen: new Set<string | undefined>() }
  const { address, calls, sockets } = await serve(
    async ({ line, query, headers, body }: Call, response: ServerResponse) => {
      tokens.seen.add(headers.authorization)
      if (headers.authorization !== tokens.accepted)
        return void response.writeHead(401).end('{"kind":"Status","reason":"Unauthorized","message":"Unauthorized"}')
      const [method = "", path = ""] = line.split(" ")
      const answer = await fetch(`${apiServer.url}${path}?${query}`, {
        method,
        body: body || null,
        headers: {
          authorization: `Bearer ${realToken}`,
          accept: String(headers.accept),
          "content-type": String(headers["content-type"]),
        },
        tls: { ca: apiServer.ca },
        timeout: false,
      } as RequestInit)
      response.writeHead(answer.status, { "content-type": "application/json" })
      response.flushHeaders()
      for await (const part of answer.body ?? []) if (!response.write(part) && response.destroyed) break
      response.end()
    },
  )
  const cut = () => sockets.forEach((socket) => void socket.destroy())
  return { address, calls, tokens, cut }
}

/** H04: the admin switches to another context, and the token of the operator's own is renewed in the file. */
export const contextSwitch = () =>
  group("context switch", (ns, check) =>
    check(
      `for ${seconds(RUN_MS)}, home sees only its own tokens, prod sees nothing, and Jobs are restarted`,
      async () => {
        const real = await ns.kubeconfig("operator")
        const file = `${real}-switched`
        const { users } = JSON.parse(await readFile(real, "utf8")) as { users: { user: { token: string } }[] }
        const home = await gate(users[0]?.user.token ?? "")
        const prod = await serve(() => ({}))
        const config = (current: string, homeToken: string) => ({
          "current-context": current,
          clusters: [home, prod].map(({ address: server }, i) => ({
            name: `c${i}`,
            cluster: { server, "certificate-authority-data": base64(trusted.cert) },
          })),
          contexts: ["home", "prod"].map((name, i) => ({ name, context: { cluster: `c${i}`, user: name } })),
          users: [
            { name: "home", user: { token: homeToken } },
            { name: "prod", user: { token: "PROD" } },
          ],
        })
        await writeFile(file, JSON.stringify(config("home", "HOME-1")))
        const begunAt = performance.now()
        const env = { KUBECONFIG: file, JOB_SELECTOR: "e2e=yes", RESTART_DELAY: "0" }
        const operator = await ns.operator(env)
        const restart = async (name: string) => {
          const job = await ns.create("jobs", failingJob({ name, labels: { e2e: "yes" } }))
          await ns.another(job)
        }
        await restart("before")
        await Bun.sleep(SWITCH_MS - (performance.now() - begunAt))
        await writeFile(file, JSON.stringify(config("prod", "HOME-2")))
        home.tokens.accepted = "Bearer HOME-2"
        home.cut()
        await restart("after")
        await Bun.sleep(RUN_MS - (performance.now() - begunAt))
        await restart("later")
        need(operator.running, "the operator has ended")
        need(prod.calls.length === 0, `prod saw ${prod.calls.length} calls`)
        const seen = [...home.tokens.seen].join(", ")
        need(seen === "Bearer HOME-1, Bearer HOME-2", `home saw ${seen}`)
        await operator.stop()
        return `${home.calls.length} calls at home with ${seen}; none at prod`
      },
    ),
  )
