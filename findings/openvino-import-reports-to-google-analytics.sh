#!/usr/bin/env bash
# expected: `import openvino` loads a library; a program that predicts offline makes no connection.
# Really (openvino 2026.4.1 with openvino-telemetry 2025.2.0, which comes with it): each import counts
# itself in ~/intel/stats, makes an identifier there, forks the process, and from the fork sends an
# event to www.google-analytics.com. There is no question first; it is sent unless the user has opted
# out, or the variable CI is "true". The parent waits for the fork for up to three seconds.
# Why it matters: computers of microscopes have no network, or one that drops packets, so that every
# start of a program takes three seconds longer; and forking a process whose threads hold locks, as
# those of JAX or PyTorch may, can end in a deadlock. Where `import openvino_telemetry` fails, OpenVINO
# works without it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install -q openvino==2026.4.1 openvino-telemetry==2025.2.0 numpy==2.4.6
mkdir "$work/home" "$work/home2"
cd "$work"
cat > program.py <<'P'
import os
import socket
import subprocess
import sys
import threading

asked = []
with socket.socket() as proxy:  # that every connection of the child would have to go through
    proxy.bind(("127.0.0.1", 0))
    proxy.listen()

    def serve():
        while True:
            try:
                connection, _ = proxy.accept()
            except OSError:
                return
            with connection:
                asked.append(connection.recv(4096).decode().split("\r\n")[0])

    threading.Thread(target=serve, daemon=True).start()
    address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
    environment = {name: value for name, value in os.environ.items()
                   if name.lower() not in ("ci", "no_proxy", "jenkins_url", "tf_build")}
    for title, first, home in (("plain", "", "home"),
                               ("without telemetry", "sys.modules['openvino_telemetry'] = None", "home2")):
        asked.clear()
        code = f"import sys; {first}\nimport openvino; print(openvino.__version__.split('-')[0])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                              env={**environment, "HOME": os.path.abspath(home), "https_proxy": address})
        print(f"{title}: {done.stdout.strip()}, asked for {asked}, in ~: {os.listdir(home)}")
    proxy.close()
P
"$work/env/bin/python" program.py | tee out
grep -q "^plain: 2026.4.1, asked for \['CONNECT www.google-analytics.com:443 HTTP/1.[01]'\], in ~: \['intel'\]$" "$work/out"
grep -q "^without telemetry: 2026.4.1, asked for \[\], in ~: \[\]$" "$work/out"
echo "as described"
