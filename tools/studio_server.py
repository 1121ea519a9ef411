"""The studio as a web page for visitors: Voila behind a front page, with limits. `make studio` starts it.

A kernel costs half a gigabyte, so nobody gets one for a mere look: the front page is plain HTML, and its button starts a kernel. There
are so many kernels and no more, each with so much memory, and those that no page is connected to end soon. Only the names in `hosts` are
answered, and a page gets nothing but what widgets say."""
import asyncio
import json
import math
import re
import secrets
import time
from functools import partial
from pathlib import Path
from urllib.parse import urlparse

from jupyter_core.utils import ensure_async
from jupyter_server.base.call_context import CallContext
from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.services.kernels.connection.base import deserialize_binary_message, deserialize_msg_from_ws_v1
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado import web
from traitlets import Integer, List, Unicode
from voila.app import Voila
from voila.tornado.handler import TornadoVoilaHandler
from voila.tornado.kernel_websocket_handler import VoilaKernelWebsocketHandler

try: import resource
except ImportError: resource = None # Windows

TOOLS = Path(__file__).resolve().parent
# what is passed on to a page: no output, no error
PASSED = {'comm_open', 'comm_msg', 'comm_close', 'comm_info_reply', 'kernel_info_reply', 'shutdown_reply', 'status'}


class Kernels(AsyncMappingKernelManager):
    "So many kernels and no more, each with so much memory; one that no page is connected to ends soon"
    visitors = Integer(10, config=True, help='Kernels at once; whoever comes then is asked to come back later')
    megabytes = Integer(2000, config=True, help="A kernel's memory, without what it shares with others (Linux only). 0: no limit")
    patience = Integer(60, config=True, help='Seconds until a kernel ends whose page never connects')
    absence = Integer(300, config=True, help='Seconds until a kernel ends whose page was lost: a phone that sleeps comes back')

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.starting = set()

    @property
    def full(self): return len({*self.list_kernel_ids(), *self.starting}) >= self.visitors

    async def start_kernel(self, *, kernel_id=None, **kwargs):
        if self.full: raise web.HTTPError(503)
        kernel_id = kernel_id or self.new_kernel_id()
        self.starting.add(kernel_id)
        try: await super().start_kernel(kernel_id=kernel_id, **kwargs)
        finally: self.starting.discard(kernel_id)
        kernel = self.get_kernel(kernel_id)
        kernel.until = math.inf # as long as its page is being made
        if self.megabytes and hasattr(resource, 'prlimit'):
            resource.prlimit(kernel.provisioner.pid, resource.RLIMIT_DATA, (self.megabytes << 20,)*2)
        CallContext.get(CallContext.JUPYTER_HANDLER).kernel = kernel
        return kernel_id

    def notify_connect(self, kernel_id):
        super().notify_connect(kernel_id)
        self._kernels[kernel_id].until = math.inf

    def notify_disconnect(self, kernel_id):
        super().notify_disconnect(kernel_id)
        if kernel_id in self: self.left(self._kernels[kernel_id], self.absence)

    def left(self, kernel, seconds):
        "A kernel ends after so many seconds, unless a page connects, or is connected"
        if not self._kernel_connections.get(kernel.kernel_id): kernel.until = time.monotonic() + seconds

    async def cull_kernel_if_idle(self, kernel_id):
        kernel = self._kernels[kernel_id]
        if kernel.shutting_down: return
        if time.monotonic() < kernel.until and await ensure_async(kernel.is_alive()): return await super().cull_kernel_if_idle(kernel_id)
        self.log.info('Nobody is connected to kernel %s: it ends.', kernel_id)
        await ensure_async(self.shutdown_kernel(kernel_id, now=True))


class Connection(ZMQChannelsWebsocketConnection):
    "What passes between a page and its kernel. `waiting`: what was sent and is not answered yet"
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.waiting = [] # of (id of a message, its bytes)

    def _id(self, message):
        if self.subprotocol: return self.session.unpack(deserialize_msg_from_ws_v1(message)[1][0])['msg_id']
        return (deserialize_binary_message(message) if isinstance(message, bytes) else json.loads(message))['header']['msg_id']

    def handle_incoming_message(self, incoming_msg):
        self.waiting.append((self._id(incoming_msg), len(incoming_msg) + 4096))
        super().handle_incoming_message(incoming_msg)

    def handle_outgoing_message(self, stream, outgoing_msg):
        header, parent, _, content = map(self.session.unpack, self.session.feed_identities(outgoing_msg)[1][1:5])
        if header['msg_type']=='status' and content['execution_state']=='idle':
            answered = next((w for w in self.waiting if w[0]==parent.get('msg_id')), None)
            if answered: self.waiting.remove(answered)
        if header['msg_type'] in PASSED and content.get('status')!='error': return super().handle_outgoing_message(stream, outgoing_msg)
        said = '\n'.join(content.get('traceback', [content.get('text', '')])) # for who runs the server, and nobody else
        if said: self.log.warning('Kernel %s: %s', self.kernel_id, re.sub(r'\x1b\[[\d;]*m', '', said)[-1000:].strip())


class Channel(VoilaKernelWebsocketHandler):
    "A page's websocket: not read while the kernel is behind, so that what a page sends at once waits in its browser"
    MOST, AT_ONCE = 8 << 20, 4 # bytes that wait for a kernel; websockets of one kernel

    async def pre_get(self):
        if self.kernel_manager._kernel_connections.get(self.kernel_id, 0) >= self.AT_ONCE: raise web.HTTPError(503)
        await super().pre_get()

    async def on_message(self, ws_message):
        while self.connection and sum(n for _, n in self.connection.waiting) > self.MOST: await asyncio.sleep(.02)
        try:
            if self.connection: self.connection.handle_incoming_message(ws_message)
        except Exception as e: # no message of a page's: nothing to talk about
            self.log.warning('A websocket that says nonsense is closed: %s', type(e).__name__)
            self.close()

    def get_websocket_protocol(self):
        protocol = super().get_websocket_protocol()
        if protocol: protocol.params.ping_interval = protocol.params.ping_timeout = None # Jupyter itself pings, and counts in milliseconds
        return protocol


class Tickets:
    "For one page each, within a minute"
    def __init__(self): self.until = {}

    def sell(self):
        now, ticket = time.monotonic(), secrets.token_urlsafe()
        self.until = {**{t: u for t, u in [*self.until.items()][-99:] if u > now}, ticket: now + 60}
        return ticket

    def take(self, ticket): return self.until.pop(ticket, 0) > time.monotonic()


class Front(JupyterHandler):
    "The front page, which costs nothing, and its button, which sells a ticket"
    @web.authenticated
    def get(self): self.show()

    @web.authenticated
    def post(self):
        try: self.check_source()
        except web.HTTPError: return self.show(403)
        if self.kernel_manager.full: return self.show(503)
        self.redirect(f'{self.base_url}studio?ticket={self.settings["tickets"].sell()}', status=303)

    def check_source(self):
        "Does a request come from this page? Other sites, and other ports of this machine, start nothing"
        asked = self.request.headers
        if asked.get('Sec-Fetch-Site', 'same-origin')!='same-origin': raise web.HTTPError(403)
        if urlparse(asked.get('Origin', f'//{self.request.host}')).netloc!=self.request.host: raise web.HTTPError(403)
        web.RequestHandler.check_xsrf_cookie(self) # form and cookie say the same; Jupyter's own check is off, see notebook 71

    def show(self, status=200):
        self.set_status(status)
        self.set_header('Cache-Control', 'no-store')
        if status==503: self.set_header('Retry-After', '120')
        self.finish(self.render_string(str(TOOLS/'studio.html'), status=status))


class Page(TornadoVoilaHandler):
    "The studio itself, for a ticket; if nobody waits for it any more, its kernel ends at once"
    kernel, gone = None, False
    show = Front.show

    @web.authenticated
    async def get(self):
        if not self.settings['tickets'].take(self.get_argument('ticket', '')): return self.redirect(self.base_url)
        try:
            async for html in self.get_generator():
                if self.gone or self.kernel.kernel_id not in self.kernel_manager: break
                self.write(html)
                self.flush()
        finally:
            if self.kernel: self.kernel_manager.left(self.kernel, 0 if self.gone else self.kernel_manager.patience)

    def on_connection_close(self):
        self.gone = True
        if self.kernel: self.kernel_manager.left(self.kernel, 0)

    def write_error(self, status_code, **kwargs):
        if status_code==503: self.show(503)
        else: super().write_error(status_code, **kwargs)


class Elsewhere(web.RequestHandler):
    "The answer to a name that is not ours: who makes a name point here can read nothing"
    def prepare(self):
        self.set_status(403)
        self.finish('This name is not known here.')


class StudioServer(Voila):
    "Voila, with a front page"
    hosts = List(Unicode(), config=True, help='Names under which the page is reached, besides 127.0.0.1, localhost and [::1]')
    classes = [*Voila.classes, Kernels]
    aliases = {**Voila.aliases, 'host': 'StudioServer.hosts', 'visitors': 'Kernels.visitors'}

    def init_settings(self):
        self.voila_configuration.multi_kernel_manager_class = Kernels
        # by a name of its own: JupyterLab, on another port of the same host, has a cookie as well
        cookie = dict(xsrf_cookie_name='ebgan-studio', xsrf_cookie_kwargs=dict(samesite='Strict', httponly=True))
        return {**super().init_settings(), **cookie, 'tickets': Tickets(), 'kernel_websocket_connection_class': Connection}

    def init_handlers(self):
        *handlers, (_, _, page) = super().init_handlers()
        ours = {VoilaKernelWebsocketHandler: Channel}
        handlers = [(path, ours.get(handler, handler), *more) for path, handler, *more in handlers]
        root = self.server_url.rstrip('/')
        picture = f'{root}/(studio.jpg)', web.StaticFileHandler, dict(path=str(TOOLS))
        handlers += [(f'{root}/', Front), (f'{root}/studio', Page, page), picture]
        names = '|'.join(map(re.escape, ['127.0.0.1', 'localhost', '[::1]', *self.hosts]))
        self.app.add_handlers(f'(?:{names})$', handlers)
        return [('.*', Elsewhere)]

    def listen(self):
        self.app.listen = partial(self.app.listen, max_body_size=1 << 16) # of a request; pictures come by websocket
        super().listen()


if __name__=='__main__': StudioServer.launch_instance()
