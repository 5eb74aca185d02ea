// Programs that the checks run: kubectl, and what an admin has on a shell.
import { existsSync, readdirSync } from "node:fs"
import { homedir } from "node:os"
import { need, root } from "./kit.ts"

export type Done = { code: number; out: string; err: string }

/** On kine each empty list can fail beside writes, and kubectl prunes by fifteen: then it is run again. */
export async function tryCommand(
  command: string[],
  input = "",
  env: Record<string, string> = {},
  tries = 20,
): Promise<Done> {
  const child = Bun.spawn(command, {
    stdin: Buffer.from(input),
    stdout: "pipe",
    stderr: "pipe",
    cwd: root,
    env: { ...process.env, ...env },
  })
  const [out, err, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ])
  const isBehind = command[0] === kubectlProgram && code !== 0 && err.includes("Too large resource version")
  if (isBehind && tries > 1) return tryCommand(command, input, env, tries - 1)
  return { code, out: out.trim(), err: err.trim() }
}

/** What a program prints; it must succeed. */
export async function run(...command: string[]): Promise<string> {
  const { code, out, err } = await tryCommand(command)
  need(code === 0, `${command.join(" ")}: exit code ${code}: ${err || out}`)
  return out
}

const cache = `${homedir()}/.cache/kube`
const cached = existsSync(cache) ? readdirSync(cache).map((version) => `${cache}/${version}/kubectl`) : []
export const kubectlProgram = process.env.E2E_KUBECTL || Bun.which("kubectl") || cached.find(existsSync) || "kubectl"
export const kubectl = (...args: string[]) => run(kubectlProgram, ...args)
